"""Every error of ours, named for what the caller does about it.

::

    GoldlineError
    ├─ ConfigError                 refuse to start
    ├─ FrameError                  dead-letter the frame, go on
    │  ├─ DecodeError              the bytes are not one readable picture
    │  ├─ ShapeError               a tensor has another shape than the model needs
    │  └─ BlobError                the picture that it refers to is missing, altered or not permitted
    ├─ ModelError                  keep the model you have
    │  ├─ FitError                 these images make no model
    │  └─ ArtifactError            a stored model is damaged, foreign or not allowed
    └─ StoreError                  retry with backoff
       ├─ ModelNotFound            nothing under that key or version
       ├─ PromotionConflict        somebody else promoted first
       ├─ MarksConflict            somebody else changed the marks first
       ├─ LeaseTaken               somebody else is at that work
       └─ StoreUnavailable         the store does not answer
"""


class GoldlineError(Exception):
    """The root: catch it to catch everything Goldline raises on purpose."""


class ConfigError(GoldlineError):
    """A setting, an option or the machine is not fit to start with."""


class FrameError(GoldlineError):
    """One frame cannot be inspected; its neighbours can."""


class DecodeError(FrameError):
    """The bytes are not one readable picture within the limits."""


class ShapeError(FrameError):
    """A tensor's shape differs from what the model was fitted for."""


class BlobError(FrameError):
    """The picture that a frame refers to is missing, altered or not permitted."""


class ModelError(GoldlineError):
    """A model cannot be made or used; a working one must stay in place."""


class FitError(ModelError):
    """These images cannot make a model."""


class ArtifactError(ModelError):
    """A stored model is damaged, incomplete, foreign or not permitted here."""


class StoreError(GoldlineError):
    """The model store could not do what was asked."""


class ModelNotFound(StoreError):  # noqa: N818 - it reads as what it is
    """Nothing is stored under that key or version."""


class PromotionConflict(StoreError):  # noqa: N818
    """The current version is not the one expected: somebody promoted in between."""


class MarksConflict(StoreError):  # noqa: N818
    """A key's marks are not as expected: somebody changed them in between."""


class LeaseTaken(StoreError):  # noqa: N818
    """Another process does this work already, or took it over."""


class StoreUnavailable(StoreError):  # noqa: N818
    """The store does not answer."""
