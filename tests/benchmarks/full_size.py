"""Three training steps at the full 1.24-billion-parameter size of Llama-3.2-1B, on this machine.

Weights are random and need no download: time and memory do not depend on their values. Rows are
random tokens, half of each an answer.

    python tests/benchmarks/full_size.py --max-length 512 --batch-size 1
"""

from __future__ import annotations

import argparse
import time

from alpacare_sft.runtime import prepared_process

LLAMA_3_2_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
}


@prepared_process()  # as a run does, before torch is imported
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from alpacare_sft import runtime
    from alpacare_sft.recipe.keys import section_types
    from alpacare_sft.training.trainer import AnswerLoss, answer_logits, answer_mask

    threads = runtime.set_threads()
    precision = runtime.resolve_precision(section_types()["train"](fp16=False))
    device = "cuda" if runtime.has_gpu() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, precision.dtype))
        base = LlamaForCausalLM(LlamaConfig(**LLAMA_3_2_1B))
        torch.set_default_dtype(torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    print(f"{sum(p.numel() for p in base.parameters()):,} parameters, {precision.name} on {device}, {threads} threads")
    for step in range(options.steps):
        began = time.perf_counter()
        ids = torch.randint(0, 128_000, (options.batch_size, options.max_length), device=device)
        labels = ids.masked_fill(torch.arange(options.max_length, device=device) < options.max_length // 2, -100)
        mask = answer_mask(labels)
        with torch.autocast(device, dtype=getattr(torch, precision.dtype), enabled=precision.name != "fp32"):
            logits = answer_logits(model, {"input_ids": ids}, mask)
        targets = labels[:, 1:][mask[:, :-1]]
        total, _ = AnswerLoss.apply(logits.float(), targets)
        loss = total / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds, peak = time.perf_counter() - began, runtime.peak_memory_bytes() / 2**30
        speed = ids.numel() / seconds
        print(f"step {step + 1}: loss {loss.item():.3f}, {seconds:.1f} s, {speed:.0f} tokens/s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
