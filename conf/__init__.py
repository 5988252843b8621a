"""Every choice a user makes, as Hydra groups of YAML; shipped as the package ``editkit.conf``."""
