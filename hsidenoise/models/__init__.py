"""The networks, one way to make them by name, and their weights."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.models.hcanet import load_released_hcanet
    from hsidenoise.models.registry import MODELS, check_config, create_model
    from hsidenoise.models.shipped import WEIGHTS
    from hsidenoise.models.weights import load_model, save_weights

__all__ = ["MODELS", "WEIGHTS", "check_config", "create_model", "load_model", "load_released_hcanet", "save_weights"]

offer(
    __name__,
    {
        "MODELS": "registry",
        "WEIGHTS": "shipped",
        "check_config": "registry",
        "create_model": "registry",
        "load_model": "weights",
        "load_released_hcanet": "hcanet",
        "save_weights": "weights",
    },
)
