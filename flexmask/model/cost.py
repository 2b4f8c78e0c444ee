"""What attention and logits cost beside all else, roughly: enough to share work out evenly, and for an estimate."""

from transformers import PreTrainedModel


def pair_cost(model: PreTrainedModel) -> float:
    """What a pair of a query and a key that it sees costs in all layers, in tokens: a token costs six operations for
    each weight outside the embeddings, a pair twelve for each dimension of each head.

    Windows of layers, and experts that a token does not go through, are not looked at. Without heads it is 0.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) // heads if heads else 0)
    weights = model.num_parameters(exclude_embeddings=True)
    return 2 * getattr(config, "num_hidden_layers", 0) * heads * width / weights if weights else 0.0


def head_cost(model: PreTrainedModel) -> float:
    """What the logits of a trained token cost, in tokens: six operations for each weight of the head, which is run for
    trained tokens alone. Without a head it is 0."""
    head = model.get_output_embeddings()
    weights = model.num_parameters(exclude_embeddings=True)
    return head.weight.numel() / weights if head is not None and weights else 0.0


def in_tokens(tokens: int, pairs: int, trained: int, of_pair: float, of_trained: float) -> float:
    """What forward and backward cost, in tokens: `tokens` that are computed, `pairs` of a query and a key that it sees,
    and the logits of `trained` tokens, of which one costs `of_pair` (`pair_cost`) and `of_trained` (`head_cost`)."""
    return tokens + of_pair * pairs + of_trained * trained
