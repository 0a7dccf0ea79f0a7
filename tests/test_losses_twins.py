"""Each loss of the catalogue against a slow twin: its formula, pair by pair, in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F
from torch.testing import assert_close

from stability.losses import (
    adaptive,
    clip,
    clip_masked,
    cyclip,
    dcl,
    dclw,
    focal_sigmoid,
    global_contrastive,
    hcl,
    infoloob,
    nt_logistic,
    rince,
    siglip,
    siglip_as_published,
    siglip_masked,
    triplet,
)

SIZE, T, B = 5, 4.0, -1.5
LOG_T, BIAS = torch.tensor(T).double().log(), torch.tensor(B).double()
PAIRS = range(SIZE)


def towers(seed: int = 0, size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, size, 3, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


IMAGE, TEXT = towers()
S = [[float(IMAGE[i] @ TEXT[j]) for j in PAIRS] for i in PAIRS]
BOTH_WAYS = (S, [list(column) for column in zip(*S, strict=True)])


def others(i: int) -> list[int]:
    return [j for j in PAIRS if j != i]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def over_rows(row) -> float:
    """Return the mean of row(similarities, i) over all rows and both directions."""
    return mean(row(s, i) for s in BOTH_WAYS for i in PAIRS)


def test_clip():
    expected = over_rows(lambda s, i: -math.log(math.exp(T * s[i][i]) / sum(math.exp(T * s[i][j]) for j in PAIRS)))
    assert_close(clip(IMAGE, TEXT, log_scale=LOG_T).item(), expected)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.3}, {"logit_cap": 2.5}, {"z_loss": 0.3, "logit_cap": 2.5}])
@pytest.mark.parametrize("more", [{}, {"max_scale": 3.0, "label_smoothing": 0.2}])
def test_clip_with_a_z_loss_and_a_cap(options, more):
    smoothing, cap = more.get("label_smoothing", 0.0), options.get("logit_cap", 1e9)

    def row(s, i):
        logits = [cap * math.tanh(min(T, more.get("max_scale", T)) * s[i][j] / cap) for j in PAIRS]
        log_sum = math.log(sum(map(math.exp, logits)))
        cross_entropy = log_sum - (1 - smoothing) * logits[i] - smoothing * mean(logits)
        return cross_entropy + options.get("z_loss", 0.0) * log_sum**2

    assert_close(clip(IMAGE, TEXT, log_scale=LOG_T, **options, **more).item(), over_rows(row))


@pytest.mark.parametrize("more", [{}, {"max_scale": 3.0}, {"reduction": "mean_pairs"}])
def test_siglip_with_a_cap(more):
    t = min(T, more.get("max_scale", T))

    def pair(i, j):
        return softplus((-1 if i == j else 1) * 2.5 * math.tanh((t * S[i][j] + B) / 2.5))

    expected = sum(pair(i, j) for i in PAIRS for j in PAIRS) / SIZE ** (2 if "reduction" in more else 1)
    assert_close(siglip(IMAGE, TEXT, log_scale=LOG_T, bias=BIAS, logit_cap=2.5, **more).item(), expected)


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"logit_cap": 5.0}, {"z_loss": 0.1, "logit_cap": 5.0}])
def test_clip_of_a_large_batch_has_its_options(options):
    image, text = towers(size=515)
    logits = options.get("logit_cap", 1e9) * torch.tanh(T * image @ text.T / options.get("logit_cap", 1e9))
    log_sums = torch.stack([logits.logsumexp(0), logits.logsumexp(1)])
    expected = log_sums.mean() - logits.diagonal().mean() + options.get("z_loss", 0.0) * log_sums.square().mean()
    assert_close(clip(image, text, log_scale=LOG_T, **options), expected)


def test_siglip_of_a_large_batch_has_its_cap():
    image, text = towers(size=515)
    logits = 2.5 * torch.tanh((T * image @ text.T + B) / 2.5)
    expected = (F.softplus(logits).sum() - logits.trace()) / 515
    assert_close(siglip(image, text, log_scale=LOG_T, bias=BIAS, logit_cap=2.5), expected)


def test_cyclip():
    within = sum(float(IMAGE[i] @ IMAGE[j] - TEXT[i] @ TEXT[j]) ** 2 for i in PAIRS for j in PAIRS)
    across = sum((S[i][j] - S[j][i]) ** 2 for i in PAIRS for j in PAIRS)
    expected = clip(IMAGE, TEXT, log_scale=LOG_T).item() + 0.1 * within / SIZE + 0.3 * across / SIZE
    assert_close(cyclip(IMAGE, TEXT, log_scale=LOG_T, in_modal=0.1, cross_modal=0.3).item(), expected)


def test_rince():
    def row(s, i):
        everything = sum(math.exp(T * s[i][j]) for j in PAIRS)
        return -(math.exp(T * s[i][i]) ** 0.4) / 0.4 + (0.05 * everything) ** 0.4 / 0.4

    assert_close(rince(IMAGE, TEXT, log_scale=LOG_T, q=0.4, weight=0.05).item(), over_rows(row))


def test_siglip_as_published():
    def pair(i, j):
        p = sigmoid(T * S[i][j] + B)
        return -math.log((p if i == j else 1 - p) + 1e-3)

    value = siglip_as_published(IMAGE, TEXT, log_scale=LOG_T, bias=BIAS, epsilon=1e-3)
    assert_close(value.item(), mean(pair(i, j) for i in PAIRS for j in PAIRS))


def test_nt_logistic():
    expected = mean(softplus(-T * S[i][i]) + mean(softplus(T * S[i][j]) for j in others(i)) for i in PAIRS)
    assert_close(nt_logistic(IMAGE, TEXT, log_scale=LOG_T).item(), expected)


def test_dcl():
    expected = over_rows(lambda s, i: -T * s[i][i] + math.log(sum(math.exp(T * s[i][j]) for j in others(i))))
    assert_close(dcl(IMAGE, TEXT, log_scale=LOG_T).item(), expected)


def test_dclw():
    total = sum(math.exp(S[i][i] / 0.7) for i in PAIRS)
    weight = [2 - SIZE * math.exp(S[i][i] / 0.7) / total for i in PAIRS]
    assert_close(mean(weight), 1.0)

    def row(s, i):
        return -weight[i] * T * s[i][i] + math.log(sum(math.exp(T * s[i][j]) for j in others(i)))

    assert_close(dclw(IMAGE, TEXT, log_scale=LOG_T, sigma=0.7).item(), over_rows(row))


def test_infoloob():
    expected = over_rows(lambda s, i: -s[i][i] + math.log(sum(math.exp(T * s[i][j]) for j in others(i))) / T)
    assert_close(infoloob(IMAGE, TEXT, log_scale=LOG_T).item(), expected)


def test_infoloob_with_hopfield_retrieval():
    def retrieved(query: Tensor, stored: Tensor) -> Tensor:
        weights = [math.exp(2.0 * float(query @ row)) for row in stored]
        found = sum(weight * row for weight, row in zip(weights, stored, strict=True))
        return found / found.norm()

    def one_way(anchor: Tensor, other: Tensor, stored: Tensor) -> float:
        u = [retrieved(row, stored) for row in anchor]
        v = [retrieved(row, stored) for row in other]
        return mean(
            -float(u[i] @ v[i]) + math.log(sum(math.exp(T * float(u[i] @ v[j])) for j in others(i))) / T for i in PAIRS
        )

    expected = (one_way(IMAGE, TEXT, IMAGE) + one_way(TEXT, IMAGE, TEXT)) / 2
    assert_close(infoloob(IMAGE, TEXT, log_scale=LOG_T, hopfield=True, hopfield_scale=2.0).item(), expected)


def test_hcl():
    def row(s, i):
        match = math.exp(T * s[i][i])
        importance = [math.exp(0.6 * T * s[i][j]) for j in others(i)]
        mismatch = [math.exp(T * s[i][j]) for j in others(i)]
        reweighted = sum(w * x for w, x in zip(importance, mismatch, strict=True)) / mean(importance)
        estimate = (reweighted - 0.05 * (SIZE - 1) * match) / 0.95
        return -math.log(match / (match + max(estimate, (SIZE - 1) * math.exp(-T))))

    assert_close(hcl(IMAGE, TEXT, log_scale=LOG_T, beta=0.6, positive_share=0.05).item(), over_rows(row))


@pytest.mark.parametrize(("step", "power"), [(0, 2.0), (25, 1 + math.sqrt(0.5)), (50, 1.0), (75, 1 - math.sqrt(0.5))])
def test_focal_sigmoid(step, power):
    def pair(i, j):
        right = (1 if i == j else -1) * (T * S[i][j] + B)
        return (1 - sigmoid(right)) ** power * softplus(-right)

    options = {"step": torch.tensor(step), "gamma": 2.0, "decay_steps": 100}
    value = focal_sigmoid(IMAGE, TEXT, log_scale=LOG_T, bias=BIAS, **options)
    assert_close(value.item(), sum(pair(i, j) for i in PAIRS for j in PAIRS) / SIZE, rtol=1e-6, atol=0)


@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
@pytest.mark.parametrize(("ratio", "kept"), [(0.01, 1), (1.6, 8), (100.0, 20)])
def test_siglip_masked(keep, ratio, kept):
    uniform = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cost = {(i, j): softplus(T * S[i][j] + B) for i in PAIRS for j in others(i)}
    order = {
        "random": lambda pair: float(uniform[pair]),
        "hard": lambda pair: -cost[pair],
        "easy": lambda pair: cost[pair],
    }
    chosen = sorted(cost, key=order[keep])[:kept]
    expected = (sum(softplus(-T * S[i][i] - B) for i in PAIRS) + sum(cost[pair] for pair in chosen)) / SIZE
    value = siglip_masked(IMAGE, TEXT, log_scale=LOG_T, bias=BIAS, uniform=uniform, keep=keep, ratio=ratio)
    assert_close(value.item(), expected)


@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
@pytest.mark.parametrize(("ratio", "kept"), [(0.01, 1), (1.6, 2), (100.0, 4)])
def test_clip_masked(keep, ratio, kept):
    uniform = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def row(s, draws, i):
        order = {"random": lambda j: draws[i][j], "hard": lambda j: -s[i][j], "easy": lambda j: s[i][j]}
        chosen = sorted(others(i), key=order[keep])[:kept]
        return -T * s[i][i] + math.log(sum(math.exp(T * s[i][j]) for j in [i, *chosen]))

    transposed = [[S[j][i] for j in PAIRS] for i in PAIRS]
    expected = mean(row(S, uniform.tolist(), i) for i in PAIRS) / 2
    expected += mean(row(transposed, uniform.T.tolist(), i) for i in PAIRS) / 2
    value = clip_masked(IMAGE, TEXT, log_scale=LOG_T, uniform=uniform, keep=keep, ratio=ratio)
    assert_close(value.item(), expected)


def test_triplet():
    def row(s, i):
        return mean(max(0.0, 0.5 + (2 - 2 * s[i][i]) - (2 - 2 * s[i][j])) for j in others(i))

    assert_close(triplet(IMAGE, TEXT, margin=0.5).item(), over_rows(row))


def test_adaptive_starts_at_clip_and_follows_its_running_skill():
    scalars = {"log_scale": LOG_T, "bias": BIAS}
    state = {"skill": torch.tensor(0.0).double()}
    skill = 0.0
    for seed in range(3):
        image, text = towers(seed)
        image = F.normalize(image + 2 * text, dim=-1)
        value, state = adaptive(image, text, **scalars, state=state, momentum=0.8)
        parts = clip(image, text, log_scale=LOG_T), siglip(image, text, **scalars)
        assert_close(value, (1 - skill) * parts[0] + skill * parts[1])
        logits = T * image @ text.T
        certain = mean(float(side[i, i]) for side in (logits.softmax(0), logits.softmax(1)) for i in PAIRS)
        skill = 0.8 * skill + 0.2 * max(0.0, (SIZE * certain - 1) / (SIZE - 1))
        assert_close(state["skill"].item(), skill)
    assert skill > 0.1


def test_global_contrastive_follows_the_published_update_and_its_gradient():
    gamma, available = 0.3, 8
    state = {side: torch.full((available,), -math.inf, dtype=torch.float64) for side in ("image", "text")}
    u: dict[str, dict[int, float]] = {"image": {}, "text": {}}
    for seed in range(4):
        image, text = towers(seed)
        index = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:SIZE]

        def estimates(image: Tensor, text: Tensor) -> dict[str, list[Tensor]]:
            s = image @ text.T
            return {
                side: [sum((T * (r[i, j] - r[i, i])).exp() for j in others(i)) / (SIZE - 1) for i in PAIRS]
                for side, r in (("image", s), ("text", s.T))
            }

        for side, now in estimates(image, text).items():
            for place, g in zip(index.tolist(), now, strict=True):
                past = u[side].get(place)
                u[side][place] = float(g) if past is None else (1 - gamma) * past + gamma * float(g)

        def surrogate(image: Tensor, index: Tensor = index, text: Tensor = text, u=u, estimates=estimates) -> Tensor:
            """Return SogCLR's: each estimate over its updated running value, which is held fixed."""
            terms = [
                g / u[side][place]
                for side, now in estimates(image, text).items()
                for place, g in zip(index.tolist(), now, strict=True)
            ]
            return torch.stack(terms).mean() / T

        options = {"log_scale": LOG_T, "index": index, "state": state, "gamma": gamma}
        slope = grad(lambda image, text=text, given=options: global_contrastive(image, text, **given)[0])(image)
        assert_close(slope, grad(surrogate)(image))
        before = {side: tensor.clone() for side, tensor in state.items()}
        _, new = global_contrastive(image, text, **options)
        assert_close(state, before, rtol=0, atol=0)
        state = new
        for side, seen in u.items():
            stored = {place: math.exp(x) for place, x in enumerate(state[side].tolist()) if x > -math.inf}
            assert_close([stored[place] for place in sorted(stored)], [seen[place] for place in sorted(seen)])
    assert len(u["image"]) > SIZE
