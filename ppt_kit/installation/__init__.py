"""Whether this machine can do what ppt_kit does, and what to type where it cannot."""

from ppt_kit.installation.report import Report, check_installation

__all__ = ["Report", "check_installation"]
