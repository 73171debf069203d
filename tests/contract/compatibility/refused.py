"""Calls of the SDK that no contract test exercises, each with the reason."""

from __future__ import annotations

REFUSED = {
    "SamplingClient.on_queue_state_change": "the SDK calls it itself, when the server pauses",
    "tinker checkpoint push-hf": "uploads to the Hugging Face hub; of the server it asks only "
    "what checkpoint download asks",
}
