"""One row in: metrics.jsonl (the truth), {job_name}.log and W&B (a mirror that may fail); read back as pandas."""

from ppt_kit.tracking.logs import bar_pace, has_bars, log_as_lines
from ppt_kit.tracking.mirrors import MirrorOptions
from ppt_kit.tracking.origin import PROVENANCE, began_here, fingerprint_of, provenance
from ppt_kit.tracking.rows import METRICS, note_end, read_metrics, read_rows, rows_so_far, was_asked
from ppt_kit.tracking.tracker import Tracker

__all__ = [
    "METRICS",
    "PROVENANCE",
    "MirrorOptions",
    "Tracker",
    "bar_pace",
    "began_here",
    "fingerprint_of",
    "has_bars",
    "log_as_lines",
    "note_end",
    "provenance",
    "read_metrics",
    "read_rows",
    "rows_so_far",
    "was_asked",
]
