"""Launched runs: which processes a run has, who starts them, who ends them.

Called, `ppt_kit.jobs(output_dir)` is the table of them: the package and that function have one name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Jobs(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from ppt_kit.jobs.listing import jobs

        return jobs(*args, **kwargs)


sys.modules[__name__].__class__ = _Jobs
