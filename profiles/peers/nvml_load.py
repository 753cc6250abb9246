"""The load of nvml_energy.py: a CUDA decode loop, in a process of its own that needs torch and transformers alone.

A Llama with random weights and a static cache; the context stays, so that every token of a window costs the same: the
prompt is read once, then tokens are decoded at the positions behind it, over and over. Prints one JSON line per stretch
with monotonic nanoseconds. Greedy, one sequence; the device is idle at both ends of each stretch.
"""

import argparse
import json
import time

SIZES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "135m": (576, 1536, 30, 9, 3, 49152),
    "1b": (2048, 8192, 16, 32, 8, 32000),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--prefill-seconds", type=float, default=3.0)
    parser.add_argument("--idle-seconds", type=float, default=12.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="decode steps as CUDA graphs through torch.compile")
    parser.add_argument("--device", default="cuda", help="cpu tries the loop out where there is no GPU")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    import torch

    torch.manual_seed(0)
    with torch.inference_mode():
        loop = Loop(torch, options)
        say("model", size=options.size, parameters=loop.parameters, torch=torch.__version__, dtype=str(loop.dtype),
            prompt_tokens=options.prompt_tokens, steps="compiled" if options.compile else "eager")  # fmt: skip
        for length in options.lengths:
            loop.use(length)
            loop.idle(options.idle_seconds, f"idle before {length}")
            for _ in range(options.repetitions):
                loop.stretch(f"prefill {length}", lambda: loop.prefill(options.prefill_seconds))
                loop.stretch(f"decode {length}", lambda: loop.decode(options.seconds))
            loop.idle(options.idle_seconds, f"idle after {length}")


class Loop:
    """Model, static cache and prompt on the device."""

    def __init__(self, torch, options: argparse.Namespace) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[options.size]
        self.torch, self.device, self.prompt_tokens = torch, options.device, options.prompt_tokens
        self.dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        longest = options.prompt_tokens + max(options.lengths)
        self.config = LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=longest,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.set_default_dtype(self.dtype)
        with torch.device(options.device):
            self.model = LlamaForCausalLM(self.config).eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.one_token = torch.compile(self.model, mode="reduce-overhead") if options.compile else self.model
        self.prompt = torch.randint(0, vocabulary, (1, options.prompt_tokens), device=options.device)
        self.positions = torch.arange(longest, device=options.device)[None]

    def use(self, length: int) -> None:
        """A cache for conversations of `length` tokens behind the prompt, and the decode loop warmed up."""
        from transformers import StaticCache

        self.length = length
        self.cache = StaticCache(config=self.config, max_cache_len=self.prompt_tokens + length)
        self.prefill(0.5)
        self.decode(2.0)

    def step(self, model, tokens, start: int):
        where = self.positions[:, start : start + tokens.shape[1]]
        out = model(input_ids=tokens, past_key_values=self.cache, position_ids=where, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1).clone()

    def rewind(self, tokens: int) -> None:
        """Forget what lies behind the first `tokens` positions, as far as the cache's mask and writes go."""
        for layer in self.cache.layers:
            if isinstance(layer.cumulative_length, int):
                layer.cumulative_length = tokens
            else:
                layer.cumulative_length.fill_(tokens)

    def prefill(self, seconds: float) -> int:
        """Read the prompt again and again; the number of tokens read."""
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.rewind(0)
            self.token = self.step(self.model, self.prompt, 0)
            count += self.prompt_tokens
            self.wait()
        return count

    def decode(self, seconds: float) -> int:
        """Conversations behind the prompt that was read last, each `length` tokens long; the number of tokens."""
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.rewind(self.prompt_tokens)
            token = self.token
            for i in range(self.length):
                token = self.step(self.one_token, token, self.prompt_tokens + i)
            self.wait()
            count += self.length
        return count

    def stretch(self, name: str, work) -> None:
        self.wait()
        start = time.monotonic_ns()
        tokens = work()
        self.wait()
        say("window", name=name, start_ns=start, end_ns=time.monotonic_ns(), tokens=tokens)

    def idle(self, seconds: float, name: str) -> None:
        """After a moment in which clocks and power come down."""
        self.wait()
        time.sleep(3.0)
        self.stretch(name, lambda: time.sleep(seconds) or 0)

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def say(kind: str, **fields) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


if __name__ == "__main__":
    main()
