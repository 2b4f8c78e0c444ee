"""A model whose replies are known."""

import torch

from recipes.models.tiny import build_model, build_tokenizer

TOKENIZER = build_tokenizer()


class Scripted:
    """Answers a prompt with what `reply` makes of its text; records every prompt it was shown."""

    def __init__(self, reply):
        self.reply = reply
        self.prompts = []
        self.model = build_model(0, vocab_size=len(TOKENIZER), layers=1, hidden_size=16)

    def install(self, monkeypatch):
        monkeypatch.setattr(self.model, "generate", self.generate, raising=False)
        return self.model

    def generate(self, input_ids, attention_mask, generation_config):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = TOKENIZER.decode(ids[mask.bool()])
            assert not mask[: int((mask == 0).sum())].any()  # padded on the left
            self.prompts.append(prompt)
            new = TOKENIZER.encode(self.reply(prompt))[: generation_config.max_new_tokens]
            rows.append(ids.tolist() + new)
        width = max(map(len, rows))
        return torch.tensor([row + [TOKENIZER.pad_token_id] * (width - len(row)) for row in rows])
