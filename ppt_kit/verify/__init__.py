"""Whether a card's episodes go here as they went there, to the bit; and where and why they do not."""

from ppt_kit.verify.departs import departs
from ppt_kit.verify.replaying import Verification, verify_card

__all__ = ["Verification", "departs", "verify_card"]
