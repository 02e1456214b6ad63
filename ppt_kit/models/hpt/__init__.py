"""Parts as HPT and ppt_learning have them, so that what was trained there goes on here.

Facts: HPT, Wang et al. 2024 (arXiv 2409.20537); GenSim2, arXiv 2410.03645, and its descendant ppt_learning.
"""
