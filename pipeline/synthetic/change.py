"""What the months do to a station: the lamp, the lot, the lens, the camera's place, in the drawn scene itself.

Lengths are pixels of a picture 224 wide. All of it comes before the camera's curve and noise, as it would.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from pipeline.synthetic.drawing import RGB, Array
from pipeline.synthetic.scene import Scene, Surface


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done to a drawn scene; by default nothing.

    Attributes:
        lamp: times its light.
        lot: times the part's red, green and blue.
        balance: times the camera's red, green and blue.
        blur_px: Gaussian sigma of the lens, before the sensor's noise.
        shift_px: of the camera, to the right.
        turn_deg: of the camera.
        scale: how much larger the part is seen.
    """

    lamp: float = 1.0
    lot: RGB = (1.0, 1.0, 1.0)
    balance: RGB = (1.0, 1.0, 1.0)
    blur_px: float = 0.0
    shift_px: float = 0.0
    turn_deg: float = 0.0
    scale: float = 1.0

    def scene(self, setting: Scene) -> Scene:
        """The scene under another lamp, before another camera."""
        red, green, blue = (a * b for a, b in zip(setting.balance, self.balance, strict=True))
        px = min(setting.size) / 224
        return replace(
            setting,
            gain=setting.gain * self.lamp,
            balance=(red, green, blue),
            centre=(setting.centre[0] + px * self.shift_px, setting.centre[1]),
            turn=setting.turn + math.radians(self.turn_deg),
            stretch=setting.stretch * self.scale,
        )

    def surface(self, surface: Surface) -> Surface:
        """The part of another lot."""
        if self.lot == (1.0, 1.0, 1.0):
            return surface
        return replace(surface, albedo=surface.albedo * np.array(self.lot, np.float32)[:, None, None])

    def lens(self, clean: Array) -> Array:
        """What the lens makes of (3, H, W)."""
        sigma = self.blur_px * min(clean.shape[1:]) / 224
        if sigma <= 0:
            return clean
        return np.asarray(ndimage.gaussian_filter(clean, (0, sigma, sigma)), np.float32)


NONE = Change()
