"""Templates of the kinds that real models have, written small."""

USER, SAID = "<|im_start|>{{ m.role }}\n", "<|im_end|>\n"
LOOP = "{% for m in messages %}"
PLAIN = LOOP + USER + "{{ m.content }}" + SAID + "{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\nOPENING{% endif %}"
# Thinking is shown while its turn is the last one.
SHOWN = "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
CALLS = "{% for c in m.tool_calls %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
THINKING = LOOP + USER + SHOWN + "{{ m.content }}" + SAID + "{% endfor %}" + ASKED
DEEPSEEK = (
    LOOP + USER + "{{ '</think>' if m.role == 'assistant' }}{{ m.content }}" + SAID + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
TEMPLATES = {
    "plain": PLAIN + ASKED.replace("OPENING", ""),
    "thinking": THINKING.replace("OPENING", ""),
    "opens": THINKING.replace("OPENING", "<think>"),
    "opens with a newline": THINKING.replace("OPENING", "<think>\n"),
    "closes only": THINKING.replace("OPENING", "").replace("<think>{{", "{{"),
    "own words": THINKING.replace("OPENING", "My steps:\n"),
    "closed scaffold": PLAIN + ASKED.replace("OPENING", "<think>\n</think>"),
    "deepseek": DEEPSEEK,
    "late system": (
        "{% set s = messages[0].content if messages[0].role == 'system' %}" + LOOP + "{% if m.role != 'system' %}"
        + USER + "{{ s if loop.last and s and m.role == 'user' }}{{ m.content }}" + SAID + "{% endif %}{% endfor %}"
        + ASKED.replace("OPENING", "")
    ),
    "header whatever is asked": PLAIN + "{{ '<|im_start|>assistant\n' }}",
    "no generation prompt": PLAIN,
    "reads reasoning": THINKING.replace("OPENING", "").replace("reasoning_content", "reasoning"),
    "thinking in parts": (
        LOOP + USER + "{% set last = loop.last %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type != 'thinking' %}{{ p.text }}"
        "{% elif last %}<think>{{ p.thinking }}</think>{% endif %}{% endfor %}{% endif %}"
        + SAID + "{% endfor %}" + ASKED.replace("OPENING", "")
    ),
    "thinking beside calls": (
        LOOP + USER + "{% if m.tool_calls %}" + SHOWN + CALLS + "{% endif %}{{ m.content }}" + SAID + "{% endfor %}"
        + ASKED.replace("OPENING", "")
    ),
    "end of the whole": (
        PLAIN + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}" + ASKED.replace("OPENING", "")
    ),
    "nothing behind an answer": (
        LOOP + USER + "{{ m.content }}{{ '<|im_end|>\n' if m.role != 'assistant' }}{% endfor %}"
        + ASKED.replace("OPENING", "")
    ),
}  # fmt: skip
