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
}
"""The stages, in their order; "net" is that of one more ControlNet."""
CONTINUED = FROM_NOTHING | {
    "vae": Plan(0, 32, 2e-4),
    "annotator": Plan(600, 16, 1e-3),
    "evaluator": Plan(600, 16, 1e-3),
    "base": Plan(1000, 16, 6e-4),
    "first": Plan(0, 24, 8e-4),
    "nets": Plan(12000, 16, 5e-4),
}
"""The same from a bundle that is there already, on a CPU: the VAE stays as it is."""
SHARES = {"annotator": 0.06, "evaluator": 0.06, "base": 0.12, "nets": 0.44, "few_steps": 0.10, "night": 0.04}
"""Of a GPU's minutes. What is left is for rendering, encoding, starts and files."""
RENDERING = 0.12


def within(minutes: float) -> dict[str, Plan]:
    """From a bundle that is there already, on a GPU: large batches, and as many steps as the time allows."""
    batches = {"annotator": 64, "evaluator": 64, "base": 384, "nets": 256, "few_steps": 128, "night": 128}
    rates = {"base": 1.2e-3, "nets": 1.2e-3, "few_steps": 6e-4}
    timed = {
        name: Plan(3000, batches[name], rates.get(name, CONTINUED[name].rate), share * minutes * 60)
        for name, share in SHARES.items()
    }
    return CONTINUED | timed
