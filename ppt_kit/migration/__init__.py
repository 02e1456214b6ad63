"""From ppt_learning to here: its configurations in today's keys, its commands, its folder with a way back."""
