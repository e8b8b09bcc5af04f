"""Other negatives for the prompts of a batch: prompts and images stay, answers change."""

from collections.abc import Mapping, Sequence

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import pad_answers


def rejected_keys(batch: Batch) -> list[list[str]]:
    """For each prompt the content keys of its rejected answers, in the batch's order."""
    found: list[list[str]] = [[] for _ in batch["prompts"]]
    for owner, role, key in zip(batch["prompt_index"].tolist(), batch["roles"].tolist(), batch["keys"], strict=True):
        if role == Role.REJECTED:
            found[owner].append(key)
    return found


def replace_rejected(batch: Batch, chosen: Mapping[int, Mapping[str, Sequence[int]]]) -> Batch:
    """The batch with other rejected answers for some of its prompts.

    Args:
        batch: as collated, on any device.
        chosen: for a prompt's position in the batch, its rejected answers from now on: content key to token ids
            through the end token. Prompts that are not named keep theirs.

    Returns:
        A new batch; the given one is unchanged.
    """
    if not chosen:
        return batch
    owners, roles = batch["prompt_index"].tolist(), batch["roles"].tolist()
    lengths, ids = batch["answer_mask"].sum(dim=-1).tolist(), batch["answer_ids"].tolist()
    answers = [
        (owner, role, ids[place][: lengths[place]], batch["keys"][place])
        for place, (owner, role) in enumerate(zip(owners, roles, strict=True))
        if not (role == Role.REJECTED and owner in chosen)
    ]
    answers += [
        (owner, int(Role.REJECTED), list(tokens), key) for owner, new in chosen.items() for key, tokens in new.items()
    ]
    answers.sort(key=lambda answer: answer[0])  # stable: a prompt's own answers stay before its new ones
    padded, mask = pad_answers([tokens for _, _, tokens, _ in answers])
    like = batch["answer_ids"]
    return Batch(
        row_index=batch["row_index"],
        prompts=batch["prompts"],
        prompt_index=batch["prompt_index"].new_tensor([owner for owner, *_ in answers]),
        roles=batch["roles"].new_tensor([role for _, role, *_ in answers]),
        answer_ids=padded.to(like.device),
        answer_mask=mask.to(like.device),
        keys=[key for *_, key in answers],
    )
