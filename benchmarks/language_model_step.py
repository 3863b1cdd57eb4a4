"""A training step of the 1-layer model: chunked head and loss, bf16 products, against the plain
Hugging Face loop.
"""

import torch

from benchmarks.timing import rates, ratio
from sae_lib.model import language_model
from sae_lib.settings import load


def run() -> dict:
    s = load("laptop").lm
    vocabulary = load("laptop").tokenizer.vocab_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = torch.randint(
        vocabulary, (s.batch, s.context + 1), generator=torch.Generator().manual_seed(0)
    ).to(device)
    models = {}
    for name in ("hugging face", "ours float32", "ours bfloat16"):
        torch.manual_seed(0)
        model = language_model.build(s, vocabulary, 0).to(device)
        if name != "hugging face" and device.type == "cpu":
            model.set_attn_implementation("eager")
        models[name] = model, torch.optim.AdamW(model.parameters(), lr=s.lr, fused=True)

    def loss_of(name):
        model = models[name][0]
        if (
            name == "hugging face"
        ):  # labels are shifted inside: the same 128 predictions from 129 tokens
            return torch.nn.functional.cross_entropy(
                model(input_ids=tokens[:, :-1]).logits.flatten(0, 1).float(),
                tokens[:, 1:].flatten(),
            )
        return language_model.next_token_loss(
            model, tokens, torch.bfloat16 if "bf" in name else torch.float32
        )

    def step(name):
        model, optimiser = models[name]
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(name)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        optimiser.step()

    losses = {name: loss_of(name).item() for name in models}
    measured = rates({name: lambda name=name: step(name) for name in models}, s.batch * s.context)
    return {
        "what": f"language-model step, {s.batch} x {s.context} tokens, vocabulary {vocabulary}",
        "unit": "tokens/s",
        "rates": measured,
        "ratios": {name: ratio(measured, name, "hugging face") for name in models},
        "loss at the same weights": losses,
        "goal": "ours bfloat16 (float32 where the machine has no bf16 products) at least 1.5 times "
        "hugging face",
    }
