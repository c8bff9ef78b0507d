"""How long each stage of the training takes: from nothing, from a bundle that is there already, or within some minutes
of a GPU."""

from tinyworld.stages import Plan

FROM_NOTHING = {
    "vae": Plan(2400, 32, 1e-3),
    "annotator": Plan(800, 16, 1e-3),
    "evaluator": Plan(800, 16, 1e-3),
    "base": Plan(3200, 32, 1e-3),
    "first": Plan(2800, 24, 8e-4),
    "nets": Plan(12000, 16, 6e-4),
    "net": Plan(500, 24, 4e-4),
    "few_steps": Plan(1600, 12, 3e-4),
    "night": Plan(500, 16, 1e-3),
    "facts": Plan(3000, 48, 1e-3),
    "reference": Plan(2200, 16, 1e-3),
}
"""The stages, in their order; "net" is that of one more ControlNet, "facts" that of the encoder of references alone."""
CONTINUED = FROM_NOTHING | {
    "vae": Plan(0, 32, 2e-4),
    "annotator": Plan(600, 16, 1e-3),
    "evaluator": Plan(600, 16, 1e-3),
    "base": Plan(1000, 16, 6e-4),
    "first": Plan(0, 24, 8e-4),
    "nets": Plan(12000, 16, 5e-4),
}
"""The same from a bundle that is there already, on a CPU: the VAE stays as it is."""
SHARES = {"annotator": 0.05, "evaluator": 0.05, "base": 0.11, "nets": 0.38}
SHARES |= {"few_steps": 0.09, "night": 0.03, "facts": 0.03, "reference": 0.07}
"""Of a GPU's minutes. What is left is for rendering, encoding, starts and files."""
RENDERING = 0.10


def within(minutes: float) -> dict[str, Plan]:
    """From a bundle that is there already, on a GPU: large batches, and at most 3000 steps as far as time allows."""
    batches = {"annotator": 64, "evaluator": 64, "base": 384, "nets": 256}
    batches |= {"few_steps": 128, "night": 128, "facts": 64, "reference": 128}
    rates = {"base": 1.2e-3, "nets": 1.2e-3, "few_steps": 6e-4}
    timed = {
        name: Plan(3000, batches[name], rates.get(name, CONTINUED[name].rate), share * minutes * 60)
        for name, share in SHARES.items()
    }
    return CONTINUED | timed
