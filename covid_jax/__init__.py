"""covid_jax: 3D lesion segmentation and transfer learning in JAX, after Wang et al. 2020."""

__version__ = "0.1.0"
