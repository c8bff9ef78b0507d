"""Metrics of how well a picture obeys a control map, each in the unit of its field and as a score.

A score is from 0 to 1, and larger is better. Each function states its formula. It compares what was found in the
generated picture with what the control map asked for.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang, Simoncelli, Bovik, Asilomar 2003)."""
SSIM_WINDOW = 11
PCK_ALPHA = 0.2


def edge_f1(drawn: np.ndarray, wanted: np.ndarray, tolerance: int = 2) -> float:
    """F1 of two edge maps, (H, W) bool, from 0 (nothing in common) to 1: edges within `tolerance` pixels match.

    Precision is the share of drawn edges near a wanted one, recall the share of wanted edges near a drawn one, as in
    boundary benchmarks (Martin et al., PAMI 2004), without their one-to-one assignment. 0 if either map is empty. The
    score is the F1.
    """
    if not drawn.any() or not wanted.any():
        return 0.0
    precision = float((_away(wanted)[drawn] <= tolerance).mean())
    recall = float((_away(drawn)[wanted] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def ms_ssim(drawn: np.ndarray, wanted: np.ndarray) -> float:
    """Multi-scale structural similarity of two grey maps, (H, W), 0 to 255 (Z. Wang, E. Simoncelli, A. Bovik, Asilomar
    2003).

    Five scales, or fewer if a side gets smaller than the window of 11 pixels. The exponents of the scales in use are
    normalised to a sum of 1. A negative similarity at a scale counts as 0. The score is the value.
    """
    one, other = drawn.astype(np.float64), wanted.astype(np.float64)
    terms: list[float] = []
    while len(terms) < len(SSIM_WEIGHTS) and (not terms or min(one.shape) >= SSIM_WINDOW):
        luminance, contrast = _similarity(one, other)
        terms.append(max(contrast, 0.0))
        half = (one.shape[1] // 2, one.shape[0] // 2)
        one, other = (cv2.resize(values, half, interpolation=cv2.INTER_AREA) for values in (one, other))
    terms[-1] = max(terms[-1] * luminance, 0.0)  # luminance counts at the coarsest scale only
    weights = np.array(SSIM_WEIGHTS[: len(terms)])
    return float(np.prod(np.array(terms) ** (weights / weights.sum())))


def depth_error(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """RMSE and score of depth, (H, W); `wanted` is a depth map of 0 to 255, which is the unit of the error.

    `found` may be in any unit: it is first scaled and shifted to the best fit (R. Ranftl et al., MiDaS, PAMI 2022). The
    score is 1 − RMSE / standard deviation of `wanted`, at least 0. It is 0 if `wanted` is flat: nothing to obey.
    """
    x, y = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    spread = float(x.var())
    scale = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1e-12 else 0.0
    # With a scale below zero, an inverted depth map would be perfect.
    error = float(np.sqrt(np.mean((max(scale, 0.0) * (x - x.mean()) + y.mean() - y) ** 2)))
    deviation = float(y.std())
    return error, max(0.0, 1 - error / deviation) if deviation > 1e-9 else 0.0


def normal_error(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Mean angle in degrees of two fields of unit normals, (H, W, 3), and its score: 1 − angle / 90, at least 0."""
    cosine = np.clip((found.astype(np.float64) * wanted).sum(-1), -1, 1)
    angle = float(np.degrees(np.arccos(cosine)).mean())
    return angle, max(0.0, 1 - angle / 90)


def mean_iou(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean intersection over union of the classes that either map has, (H, W) integers (M. Everingham et al., IJCV
    2010). The score is the value."""
    classes = np.union1d(found, wanted)
    shares = [((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum() for c in classes]
    return float(np.mean(shares))


def pck(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], alpha: float = PCK_ALPHA) -> float:
    """Share of correct keypoints, PCK (Y. Yang, D. Ramanan, PAMI 2013): those found within alpha × the larger side of
    the box around the wanted person's joints.

    Each person is (J, 3): x, y, and 0 if the joint is absent. Each wanted person is compared with a different found
    one, in the assignment with the most correct joints. Joints of wanted people without a found one are wrong. 0 if no
    joint is wanted. The score is the value.
    """
    total = sum(int((person[:, 2] > 0).sum()) for person in wanted)
    if not total or not len(found):
        return 0.0
    right = np.array([[_right_joints(one, person, alpha) for one in found] for person in wanted])
    return float(right[linear_sum_assignment(-right)].sum() / total)


def _right_joints(found: np.ndarray, wanted: np.ndarray, alpha: float) -> int:
    there = wanted[:, 2] > 0
    if not there.any():
        return 0
    box = np.ptp(wanted[there, :2], axis=0).max()
    away = np.linalg.norm(found[:, :2] - wanted[:, :2], axis=1)
    return int((there & (found[:, 2] > 0) & (away <= alpha * max(box, 1.0))).sum())


def _similarity(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean luminance term, and mean of contrast and structure, of SSIM (Z. Wang et al., TIP 2004)."""

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (SSIM_WINDOW, SSIM_WINDOW), 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_one, mean_other = blur(one), blur(other)
    variances = blur(one * one) - mean_one**2 + blur(other * other) - mean_other**2
    covariance = blur(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
    return float(luminance.mean()), float(((2 * covariance + c2) / (variances + c2)).mean())


def _away(edges: np.ndarray) -> np.ndarray:
    """Distance in pixels of every place to the nearest edge."""
    return cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
