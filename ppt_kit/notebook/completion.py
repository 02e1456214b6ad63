"""The tab key inside a configuration's words: ppt.load_config("quickstart", "train.<tab>"."""

from __future__ import annotations

import re
from typing import Any

# the innermost call up to the cursor, and what of a word stands before it
CALL = re.compile(r"\b(load_config|sweep)\(((?:[^()]|\([^()]*\))*)$", re.DOTALL)
WORD = re.compile(r"['\"](?:--)?([\w.]*)$")


def install(shell: Any) -> None:
    """Adds the completion to a running IPython, once."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    if any(getattr(each, "is_of_ppt_kit", False) for each in shell.Completer.custom_matchers):
        return

    @context_matcher()
    def complete_keys(context: Any) -> dict[str, Any]:
        lines = context.full_text.splitlines()[: context.cursor_line]
        begun, found = completed("\n".join([*lines, context.text_until_cursor]))
        return {
            "completions": [SimpleCompletion(name, type="key") for name in found],
            "matched_fragment": begun,
            # inside such a word nothing else is meant
            "suppress": bool(found),
        }

    complete_keys.is_of_ppt_kit = True
    shell.Completer.custom_matchers.append(complete_keys)


def completed(text: str) -> tuple[str, list[str]]:
    """What has been typed of a key, where `text` ends inside a string of such a call, and what it may become.

    Up to the next dot: "tr" becomes train., "train.total_e" train.total_epochs=, in a sweep's dictionary without the =.
    """
    call = CALL.search(text)
    word = WORD.search(call[2]) if call else None
    # an even number of quotes: the string is closed
    if word is None or call is None or call[2].count(call[2][word.start()]) % 2 == 0:
        return "", []
    return word[1], _next_names(word[1], end="=" if call[1] == "load_config" else "")


def _next_names(begun: str, *, end: str) -> list[str]:
    from ppt_kit.keys import leaves_of
    from ppt_kit.schema import Config

    found: dict[str, None] = {}
    for key in leaves_of(Config):
        if key.startswith(begun):
            rest, dot, _ = key[len(begun) :].partition(".")
            found[f"{begun}{rest}{dot or end}"] = None
    return list(found)
