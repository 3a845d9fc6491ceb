"""Masked-autoencoder pretraining on high-definition X-ray images (arXiv 2404.17926)."""
