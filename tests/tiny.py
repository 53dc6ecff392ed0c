"""Small configs and the texts that runs of them train on."""

import json

from tvd_gen.config import load_config

TINY = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
TINY |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "loud", "soft"]


def text(i, length):
    return " ".join(WORDS[(i * 7 + j * (1 + i % 3)) % len(WORDS)] for j in range(length))


def silent(*_):
    return None


QUIET = {"say": silent, "progress": silent}


def config(tmp_path, files, **sections):
    tree = {
        "task": "summarization",
        "objective": {"name": "tailr", "gamma": 0.02, "min_weight": 0.2, "label_smoothing": 0.1},
        "model": {
            "architecture": {"model_type": "bart", "max_position_embeddings": 64, **TINY},
            "tokenizer": {"type": "bpe", "vocab_size": 300},
        },
        "data": {"files": files, "max_target_tokens": 12},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "learning_rate": 1e-3,
        },
        "generation": {"num_beams": 1, "max_new_tokens": 6, "no_repeat_ngram_size": 0},
        "evaluation": {"batch_size": 4},
    }
    for name, section in sections.items():
        tree[name] = section if name in ("task", "model") else tree[name] | section
    if "max_tokens" in tree["training"]:
        del tree["training"]["per_device_train_batch_size"]
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tree))
    return load_config(file)


LM = {
    "task": "language_modeling",
    "model": {
        "architecture": {
            "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64,
        },
        "tokenizer": {"type": "bpe", "vocab_size": 300},
    },
    "generation": {},
}  # fmt: skip
