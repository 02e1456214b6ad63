"""DeepSpeed and torch.distributed, nowhere else: one engine for one process and for many.

What was measured and settles the odd lines in here stands in the comments above them.
"""

from ppt_kit.engine.averaged import Averaged
from ppt_kit.engine.engine import Engine
from ppt_kit.engine.settings import check_settings, zero_numbers
from ppt_kit.engine.world import World, barrier, from_first, join_world, leave_world, num_cores

__all__ = [
    "Averaged", "Engine", "World", "barrier", "check_settings", "from_first", "join_world", "leave_world", "num_cores",
    "zero_numbers",
]  # fmt: skip
