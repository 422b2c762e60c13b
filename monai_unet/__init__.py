"""The original U-Net (Ronneberger, Fischer, Brox 2015) for MONAI."""

__version__ = "0.1.0"
