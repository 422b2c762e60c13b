"""Data sets by card: find or download the archive, verify its pixels, write a MONAI datalist.

A card is `datasets/<name>.yaml`: source, licence, citation, folder, checksums, split. The code knows
no data set by name; a card names the layout (``kind``) of its archive.
"""

from monai_unet.datasets.card import cards, default_folder, prepare
from monai_unet.datasets.prepared import datalist, hold_out, identity

__all__ = ["cards", "datalist", "default_folder", "hold_out", "identity", "prepare"]
