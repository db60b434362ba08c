"""Attacks: generators of changed subjects. They do not measure."""

# What an auditor would also try and this version cannot; the report lists them as not tested.
NOT_YET = {
    "prompt-suffix search": "an optimised prompt (GCG and relatives) was not searched for",
    "prefill and role-play prompts": "no jailbreak prompt was tried",
    "sampling": "only the greedy answer was read, not many sampled ones",
    "read-out from inner layers": "no probe or logit lens was applied",
    "pruning and direction ablation": "no weights were removed or projected",
}
