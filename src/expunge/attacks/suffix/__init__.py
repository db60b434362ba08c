"""Search for a short string that, put into a prompt, makes a model say a chosen text (GCG and its relatives).

    from expunge.attacks.suffix.problem import problems_of, putting
    from expunge.attacks.suffix.search import Settings, search

    problems = problems_of(subject, examples, length=20)           # one universal string for all of them
    for step in search(problems, Settings(steps=50, width=256), run):
        print(step.number, step.loss, step.text, step.solved, step.cost)
    attacked = replace(subject, wrapper=putting(subject.wrapper, problems[0].put(step.ids)))

problem     Problem: before | string | after | target as tokens, and how the string is spelled inside the prompt
losses      what is made small: target cross-entropy, mellowmax, FLRT's; terms of one's own, fluency, repetition
shared      keys and values that many sequences share
evaluate    exact losses of many candidates: shared keys and values, buckets by the first changed place
slope       the gradient with respect to the string's tokens
propose     candidates: gradient top-k, random swaps, all swaps; delete, insert and what the model itself would say
probe       probe sampling with a draft model
settings    Settings, and the random numbers of each step
search      the loop: Step, search
"""
