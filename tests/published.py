"""The published form of the configuration, which has to run as it stands."""

PUBLISHED = """
seed: 0
analysis:
  num_sentences: 10          # null: the whole corpus
  temperature: 1.0
  use_sampling: false
  compare_control: true      # standard, control and comparative outputs; false: what is enabled alone
  positions: last            # last | all
  mask_strategy: last        # last | random | each
  lens: logit                # logit | raw | tuned
  metrics: [entropy, perplexity, margin, kl_divergence, attention_entropy, surprisal]
  top_k: 5
  control:
    enabled: true
    control_vector: null     # a file; or:
    control_vectors: {positive: [0.1, 0.2, 0.3], negative: [-0.1, -0.2, -0.3]}
    direction: positive
    strength: 1.0
    layer_weights: [1.0, 1.2, 1.5]
    token_weights: [1.0, 1.2, 1.5]
models:
  gpt2: {name: gpt2, output_hidden_states: true}          # a hub name, a local folder, or builtin:...
  bert: {name: google-bert/bert-base-uncased, output_hidden_states: true}
data:
  path: null                 # null: the built-in sentences; a hub data set; csv, tsv, json(l), parquet, ...
  name: null
  split: train
  text_column: null          # found by itself where there is just one text column
  streaming: false
  max_length: null           # null: what the model allows; longer sentences are cut, counted and reported
  tokens_per_batch: 8192     # a batch is filled by tokens, not by sentences
trainer: {accelerator: auto, devices: auto, num_nodes: 1, strategy: auto, precision: 32-true}
output: {dir: analysis_outputs, run_name: null, plots: true, parquet: true}
"""
