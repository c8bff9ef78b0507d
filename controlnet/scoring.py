"""How well a picture obeys a control map, as numbers."""

import cv2
import numpy as np


def edge_f1(drawn: np.ndarray, wanted: np.ndarray, tolerance: int = 2) -> float:
    """F1 of two edge maps, (H, W) bool, from 0 (nothing in common) to 1: edges within `tolerance` pixels match.

    Precision is the share of drawn edges near a wanted one, recall the share of wanted edges near a drawn one, as in
    boundary benchmarks (Martin et al., PAMI 2004), without their one-to-one assignment. 0 where either map is empty.
    """
    if not drawn.any() or not wanted.any():
        return 0.0
    precision = float((_away(wanted)[drawn] <= tolerance).mean())
    recall = float((_away(drawn)[wanted] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _away(edges: np.ndarray) -> np.ndarray:
    """Distance in pixels of every place from the nearest edge."""
    return cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
