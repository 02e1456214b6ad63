"""From any dataset format to another: python scripts/convert_dataset.py source=PATH target=PATH to=zarr|lerobot"""

from ppt_kit.commands.convert_dataset import run

if __name__ == "__main__":
    run()
