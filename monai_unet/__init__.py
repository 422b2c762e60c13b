"""The original U-Net (Ronneberger, Fischer, Brox 2015) for MONAI."""

from importlib.metadata import version

__version__ = version("monai_unet")
