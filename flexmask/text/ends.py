"""Where a turn ends: the token that the model has to write for whoever serves it to stop."""

from __future__ import annotations

import os

from flexmask.text.template import ChatTemplate


def end_of_turn(tail: str, followed: str, template: ChatTemplate, where: str) -> str:
    """`tail`, which the template writes behind the last text of a turn, up to the token that ends the turn.

    In this order: the tokenizer's end of sequence, if it stands there; the last special token that also stands there
    once another message follows, or the first of its run where more follows than history has; the special token at the
    very end; the one that opens the next message.

    followed: what stands there then, up to the content of that message; empty where the template takes none.
    Raises ValueError, beginning with `where`, where no special token ends the turn.
    """
    found = list(template.special.finditer(tail))
    shared = len(os.path.commonprefix([tail, followed]))
    in_history = [token for token in found if token.end() <= shared]
    for token in in_history or found:
        if token.group() == template.tokenizer.eos_token:
            return tail[: token.end()]
    if in_history:
        # Behind the shared text may stand the end of the whole (Phi-3), or a header whatever is asked for (Command A):
        # the last run of tokens that both have begins with the end of the turn.
        end = in_history[-1]
        for token in reversed(in_history[:-1] if tail[shared:].strip() else ()):
            if tail[token.end() : end.start()].strip():
                break
            end = token
        return tail[: end.end()]
    if found and not tail[found[-1].end() :].strip():
        return tail[: found[-1].end()]
    # Some templates write nothing behind an answer: the token that opens the next message ends it (GLM-4).
    tail = tail.rstrip()
    opening = template.special.search(followed, len(tail)) if followed.startswith(tail) else None
    if opening is None or followed[len(tail) : opening.start()].strip():
        raise ValueError(
            f"{where}: no special token ends the generated text (behind it stands {tail[-40:]!r}) or opens the message "
            "behind it, so the model would never learn to stop; the chat template must close an assistant turn with a "
            "special token"
        )
    return tail + followed[len(tail) : opening.end()]
