"""The same GPT-2 in CTranslate2, transformers and OpenVINO GenAI, in an environment of their own.

    PYTHON rival_case.py FOLDER RIVAL CHECKPOINT

CHECKPOINT is a folder with the weights under Hugging Face's names, "weights.npz", and
"config.json"; what a rival converts is written beside them. See `workers.obey`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workers import obey, timed

__all__: list[str] = []

Prompts = list[list[int]]


def torch_model(checkpoint: Path) -> Any:
    """GPT-2 of transformers with these weights, one thread."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    model = GPT2LMHeadModel(GPT2Config(**json.loads((checkpoint / "config.json").read_text())))
    weights = {k: torch.tensor(v) for k, v in np.load(checkpoint / "weights.npz").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # which is that of the embedding
        raise RuntimeError(f"Weights have other names. Received: {missing}, {unexpected}")
    model.tie_weights()
    return model.eval()


def saved_model(checkpoint: Path) -> Path:
    """A folder as `save_pretrained` writes it, with a tokenizer of one word a token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = checkpoint / "saved"
    if not folder.exists():
        model = torch_model(checkpoint)
        words = {f"t{token}": token for token in range(model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="t0", bos_token="t0", eos_token="t0"
        ).save_pretrained(folder)
    return folder


def transformers_generate(checkpoint: Path) -> Callable[[Prompts, int], Prompts]:
    """`generate` of transformers: one batch."""
    import torch

    model = torch_model(checkpoint)

    def run(prompts: Prompts, new: int) -> Prompts:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            made = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        found: Prompts = made[:, tokens.shape[1] :].tolist()
        return found

    return run


def ctranslate2_generate(checkpoint: Path) -> Callable[[Prompts, int], Prompts]:
    """`generate_batch` of CTranslate2: one batch."""
    import ctranslate2

    folder = checkpoint / "ctranslate2"
    if not folder.exists():
        ctranslate2.converters.TransformersConverter(str(saved_model(checkpoint))).convert(
            str(folder)
        )
    generator = ctranslate2.Generator(
        str(folder), compute_type="float32", intra_threads=1, inter_threads=1
    )

    def run(prompts: Prompts, new: int) -> Prompts:
        made = generator.generate_batch(
            [[f"t{token}" for token in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in made]

    return run


def openvino_generate(checkpoint: Path) -> Callable[[Prompts, int], Prompts]:
    """Continuous batching of OpenVINO GenAI: requests are added, and stepped to their ends."""
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.ContinuousBatchingPipeline(
        str(checkpoint / "openvino"),
        genai.SchedulerConfig(),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1},
    )
    config = genai.GenerationConfig(do_sample=False, ignore_eos=True)

    def run(prompts: Prompts, new: int) -> Prompts:
        config.max_new_tokens = new
        handles = [
            pipeline.add_request(number, ov.Tensor(np.array([prompt], np.int64)), config)
            for number, prompt in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    return run


RIVALS = {
    "transformers": transformers_generate,
    "CTranslate2": ctranslate2_generate,
    "OpenVINO GenAI": openvino_generate,
}


def main() -> None:
    folder, rival, checkpoint = sys.argv[1:4]
    generate = RIVALS[rival](Path(checkpoint))

    def batch(prompts: Prompts, new: int) -> dict[str, Any]:
        took, made = timed(lambda: generate(prompts, new))
        return took | {"made": made}

    obey(Path(folder), {"batch": batch})


if __name__ == "__main__":
    main()
