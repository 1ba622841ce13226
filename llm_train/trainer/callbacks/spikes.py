"""How far a number lies above where its recent curve would put it, in standard deviations.

A mean and a standard deviation follow the very values that they should find: one loss of 76 among
ones of 4 hides the next for as long as it is remembered. So medians decide first which values are
usual, by their distance from a line, for a loss falls: Tukey's resistant line through the medians
of the first and the last third ("Exploratory data analysis", 1977), and the median of the distances
(Hampel, "The influence curve and its role in robust estimation", JASA 69, 1974). Least squares over
what is usual then give the line and the deviation, more exactly than medians can (the reweighting
of Rousseeuw and Leroy, "Robust regression and outlier detection", 1987).
"""

from collections import deque
from collections.abc import Iterable

import numpy as np

# Of a normal distribution: its deviation in median distances, 1 / Phi^-1(3/4), and the deviation of
# what lies within three of it.
_PER_DISTANCE = 1.4826
_WITHIN_3 = 0.9866
# A curve that repeats one value has no deviation; less than this part of it is no spike.
_LEAST = 1e-4


class Curve(deque[float]):
    """The last ``window`` values of a number, one a step.

    Args:
        window: how many; at least 3.
        values: the first of them.
        factor: what is less than so many times what the line says is not above it.
    """

    def __init__(self, window: int, values: Iterable[float] = (), factor: float = 1.0) -> None:
        super().__init__(values, window)
        self.factor = factor

    def deviations(self, value: float) -> float:
        """How many standard deviations ``value`` lies above the line, one step after the last.

        It is 0 until the window is full, and at ``factor`` or below.

        >>> curve = Curve(9, [5.0, 4.92, 4.8, 4.71, 4.6, 4.48, 4.4, 76.9, 4.19])
        >>> round(curve.deviations(4.1)), round(curve.deviations(5.0))
        (2, 99)
        """
        count = len(self)
        if count != self.maxlen:
            return 0.0
        values, steps, third = np.array(self), np.arange(count), count // 3
        slope = (np.median(values[-third:]) - np.median(values[:third])) / (count - third)
        rest = values - slope * steps
        distances = abs(rest - np.median(rest))
        usual = distances <= 3 * _PER_DISTANCE * np.median(distances)
        values, steps = values[usual], steps[usual]
        middle, mean, centred = steps.mean(), values.mean(), steps - steps.mean()
        slope = centred @ values / max(centred @ centred, 1.0)
        deviation = (values - mean - slope * centred).std() / _WITHIN_3
        expected = mean + slope * (count - middle)
        if value <= self.factor * expected:
            return 0.0
        return float((value - expected) / max(deviation, _LEAST * abs(mean), _LEAST**2))
