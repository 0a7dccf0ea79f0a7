"""Thresholds of sharpness above which a step size is unstable: the edge of stability."""

from __future__ import annotations

from stability.registry import InputError


def adaptive_threshold(lr: float, beta1: float) -> float:
    """Return the preconditioned sharpness at which Adam with rate *lr* and momentum *beta1* becomes unstable.

    (2 + 2 beta1) / ((1 - beta1) lr), the largest stable eigenvalue of P^-1/2 H P^-1/2 under an exponential
    average of gradients: 38 / lr at beta1 = 0.9. Cohen et al. (2022), "Adaptive gradient methods at the
    edge of stability", arXiv:2207.14484, section 3.

    >>> round(adaptive_threshold(1e-3, 0.9))
    38000
    >>> adaptive_threshold(0.5, 0.0)  # gradient descent: 2 / lr
    4.0
    """
    if not lr > 0:
        raise InputError(f"lr is {lr}; allowed: a positive learning rate")
    if not 0 <= beta1 < 1:
        raise InputError(f"beta1 is {beta1}; allowed: at least 0 and below 1")
    return (2 + 2 * beta1) / ((1 - beta1) * lr)


def momentum_threshold(lr: float, momentum: float, nesterov: bool = False) -> float:
    """Return the sharpness at which SGD with rate *lr* and *momentum* becomes unstable, without noise.

    (2 + 2 momentum) / lr with heavy-ball momentum, (2 + 2 momentum) / ((1 + 2 momentum) lr) with Nesterov's: the
    largest stable eigenvalue of a quadratic. Cohen et al. (2021), "Gradient descent on neural networks typically
    occurs at the edge of stability", arXiv:2103.00065, equation 1 and appendix B.

    >>> momentum_threshold(0.5, 0.0), round(momentum_threshold(0.1, 0.9))
    (4.0, 38)
    >>> momentum_threshold(0.5, 0.5, nesterov=True)
    3.0
    """
    if not lr > 0:
        raise InputError(f"lr is {lr}; allowed: a positive learning rate")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum is {momentum}; allowed: at least 0 and below 1")
    return (2 + 2 * momentum) / (lr * (1 + 2 * momentum) if nesterov else lr)
