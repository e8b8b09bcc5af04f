"""The reference of stage 2: the model that stage 2 starts from, asked live or remembered on disk."""

from cwdpo.reference.cache import ReferenceCache
from cwdpo.reference.live import FrozenCopy, Reference, StartingAdapter

__all__ = ["FrozenCopy", "Reference", "ReferenceCache", "StartingAdapter"]
