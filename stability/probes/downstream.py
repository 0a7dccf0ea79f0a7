"""Downstream accuracy of the embeddings on held-out pairs: retrieval, zero-shot classes, hard negatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.probes.registry import Measure, Replica, probe


def _recall(name: str, label: str, text: str) -> Measure:
    return Measure(name, label, text, transform="log_above_chance", chance="recall_at_1_chance", better="higher")


def _of_half(half: str, words: str) -> tuple[Measure, Measure]:
    name = f"recall_at_1_{half}"
    recall = _recall(name, f"Recall@1, {half}", f"Recall@1 of queries whose class is of the {words} frequent half.")
    chance = f"Expected recall@1 of random embeddings for queries of the {words} frequent half of the classes."
    return (
        replace(recall, chance=f"{name}_chance", needs="frequencies"),
        Measure(f"{name}_chance", f"Chance of recall@1, {half}", chance, needs="frequencies"),
    )


def recall_at_1(similarity: Tensor, caption: Tensor) -> Tensor:
    """Return the share of rows whose most similar column has the row's caption.

    similarity (N, N), caption (N,) ids: any item with an identical caption counts as correct.

    >>> recall_at_1(torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), torch.tensor([0, 0, 1]))
    tensor(0.6667)
    """
    return (caption[similarity.argmax(-1)] == caption).to(similarity.dtype).mean()


def recall_of_queries(similarity: Tensor, caption: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall@1 of some queries among all items, the mean of both directions, and its chance level.

    Chance is the share of items with the query's caption, the mean over the queries. NaN for both without a query.

    Args:
        similarity: of every image with every text, (N, N).
        caption: ids (N,).
        queries: indices (q,) of the pairs whose image and whose text are queries.

    >>> similarity = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> recall_of_queries(similarity, torch.arange(3), torch.tensor([0, 1]))
    (tensor(0.5000), tensor(0.3333))
    """
    found = [caption[side.argmax(-1)[queries]] == caption[queries] for side in (similarity, similarity.T)]
    same = (caption[queries, None] == caption).to(similarity.dtype).mean()
    return torch.stack(found).to(similarity.dtype).mean(), same


def recall_error(image: Tensor, text: Tensor, caption: Tensor) -> Tensor:
    """Return 1 - recall@1 of unit rows (N, D), the mean of both directions: an error rate in [0, 1].

    >>> rows, caption = torch.eye(2), torch.arange(2)
    >>> recall_error(rows, rows, caption), recall_error(rows, -rows, caption)
    (tensor(0.), tensor(1.))
    """
    similarity = image @ text.T
    return 1 - (recall_at_1(similarity, caption) + recall_at_1(similarity.T, caption)) / 2


def zero_shot_accuracy(image: Tensor, prompts: Tensor, label: Tensor) -> Tensor:
    """Return the share of images (N, D) nearest to the mean prompt embedding of their own class.

    prompts (classes, variants, D), unit rows; the mean over variants is renormalized to unit length.
    Radford et al. (2021), arXiv:2103.00020, Sec. 3.1.4.
    """
    classes = F.normalize(prompts.mean(1), dim=-1)
    return ((image @ classes.T).argmax(-1) == label).to(image.dtype).mean()


def hard_negative_accuracy(image: Tensor, text: Tensor, negatives: Tensor) -> Tensor:
    """Return the share of images (m, D) that are nearer to their own text (m, D) than to each hard negative (m, K, D).

    A tie counts as wrong. As in Yuksekgonul et al. (2023), arXiv:2210.01936, whose captions differ in word order.

    >>> image, text = torch.eye(2), torch.tensor([[0.9, 0.0], [0.0, 0.5]])
    >>> hard_negative_accuracy(image, text, torch.tensor([[[0.8, 0.0]], [[0.0, 0.6]]]))
    tensor(0.5000)
    """
    matching = (image * text).sum(-1)
    hardest = (image[:, None] * negatives).sum(-1).amax(-1)
    return (matching > hardest).to(image.dtype).mean()


@probe(
    measures=(
        _recall("recall_at_1", "Recall@1", "Same-caption recall@1 on held-out pairs, mean of both directions."),
        _recall(
            "recall_at_1_image_to_text",
            "Recall@1, image to text",
            "Share of images whose nearest text says the same.",
        ),
        _recall(
            "recall_at_1_text_to_image",
            "Recall@1, text to image",
            "Share of texts whose nearest image says the same.",
        ),
        Measure(
            "recall_retained",
            "Recall@1 retained",
            "Lowest recall@1 after the event of a run, such as the change of its loss, over that at the event, which "
            "was measured before the first update after it.",
            "share",
            better="higher",
            after_event=("recall_at_1", "retained"),
        ),
        Measure(
            "steps_to_recover",
            "Steps to recover recall@1",
            "Steps from the event of a run until recall@1, having fallen below its value at the event, is again at "
            "least that; 0 if it never fell. A run that does not recover counts all its steps after the event.",
            "steps",
            better="lower",
            after_event=("recall_at_1", "recovery"),
        ),
        Measure("recall_at_1_chance", "Chance of recall@1", "Expected same-caption recall@1 of random embeddings."),
        Measure(
            "zero_shot_accuracy",
            "Zero-shot accuracy",
            "Share of held-out images nearest to their class's mean prompt.",
            transform="log_above_chance",
            chance="zero_shot_accuracy_chance",
            better="higher",
            needs="classes",
        ),
        Measure("zero_shot_accuracy_chance", "Chance of zero-shot", "One over the number of classes.", needs="classes"),
        Measure(
            "hard_negative_accuracy",
            "Hard-negative accuracy",
            "Share of held-out images nearer to their own text than to every text that is false of them by one word.",
            transform="log_above_chance",
            chance="hard_negative_accuracy_chance",
            better="higher",
            needs="hard-negatives",
        ),
        Measure(
            "hard_negative_accuracy_chance",
            "Chance of hard negatives",
            "One over the number of texts to choose from.",
            needs="hard-negatives",
        ),
        *_of_half("head", "more"),
        *_of_half("tail", "less"),
    ),
    holds=("similarities",),
)
def retrieval(replica: Replica) -> dict[str, Tensor]:
    """Measure held-out recall@1 in both directions and, if the data offer them, zero-shot and hard-negative accuracy.

    An item counts as retrieved if its caption is identical to the query's. Chance is the share of item pairs with
    identical captions. Where the study sets frequencies of classes, recall is also given for the queries of the head
    and of the tail: the more and the less frequent half of the classes, by rank, among all held-out items.
    """
    held_out = replica.held_out
    image = replica.embed_image(replica.params, held_out.image)
    text = replica.embed_text(replica.params, held_out.text)
    similarity = image @ text.T
    to_text, to_image = recall_at_1(similarity, held_out.caption), recall_at_1(similarity.T, held_out.caption)
    same = (held_out.caption[:, None] == held_out.caption).to(image.dtype).mean()
    columns = {
        "recall_at_1": (to_text + to_image) / 2,
        "recall_at_1_image_to_text": to_text,
        "recall_at_1_text_to_image": to_image,
        "recall_at_1_chance": same,
    }
    if len(held_out.prompts):
        prompts = _embed_rows(replica, held_out.prompts)
        columns["zero_shot_accuracy"] = zero_shot_accuracy(image, prompts, held_out.label)
        columns["zero_shot_accuracy_chance"] = torch.full_like(same, 1 / len(prompts))
    if held_out.hard_negatives is not None:
        negatives = _embed_rows(replica, held_out.hard_negatives)
        columns["hard_negative_accuracy"] = hard_negative_accuracy(image, text, negatives)
        columns["hard_negative_accuracy_chance"] = torch.full_like(same, 1 / (1 + negatives.shape[1]))
    for half, queries in (("head", held_out.head), ("tail", held_out.tail)):
        if queries is not None:
            recall, chance = recall_of_queries(similarity, held_out.caption, queries)
            columns |= {f"recall_at_1_{half}": recall, f"recall_at_1_{half}_chance": chance}
    return columns


def _embed_rows(replica: Replica, texts: Tensor) -> Tensor:
    """Return the embeddings (rows, columns, D) of a table of texts (rows, columns, ...)."""
    return replica.embed_text(replica.params, texts.flatten(0, 1)).unflatten(0, texts.shape[:2])
