/* What each number says, in a sentence: a row for each metric, and the words that the page uses. */

const MEANINGS = {
  entropy: "how uncertain the model is about the token that it predicts. 0 nats: one token is certain; ln V nats: all V tokens are equally likely.",
  perplexity: "entropy as a number of tokens: how many equally likely ones would be as uncertain. 1: certain.",
  margin: "how far the most likely token is ahead of the second one, in logits. 0: a tie.",
  kl_divergence: "how far the distribution is from one in which all tokens are equally likely: ln V \u2212 entropy. 0 nats: knows nothing.",
  surprisal: "how unexpected the target token is: \u2212ln of its probability. 0 nats: it was certain.",
  attention_entropy: "how widely attention is spread over the tokens before, as the mean over heads. 0 nats: all on one token.",
  kl_to_final: "how far the layer's distribution is from that of the last layer. 0 nats: the answer stands.",
  target_rank: "how many tokens the model takes to be likelier than the target. 0: it is the first choice.",
  varentropy: "how uneven the uncertainty is: the variance of the surprisal of a token drawn from the distribution.",
  residual_norm: "the length of the vector that is handed from block to block.",
  sink_mass: "the share of attention that goes to no token at all, but to a sink. 0: none.",
  entropy_change: "entropy minus that of the layer before. Above 0: options are added; below 0: they are ruled out.",
  top1_agreement: "the share of positions at which the layer's most likely token is already the last layer's. 1: always.",
  attended_entropy: "attention entropy as a share of its largest possible value. 1: attention is even over all tokens.",
  renyi_entropy: "entropy of another order (Rényi), which gives likely tokens more weight, or less. 0 nats: certain.",
  kl_from_standard: "how far steering moves the whole distribution from the standard run's. 0 nats: it changes nothing.",
  top1_changed: "the share of positions at which steering changes the most likely token. 0: none.",
  log_boundary: "the logarithm of the probability that the word ends here. 0: it ends for certain.",
  standard_surprisal: "how unexpected the written text is to the unsteered model: what steering costs in fluency. Lower is more fluent.",
  text_length: "how many tokens the model wrote.",
  distinct_1: "the share of different tokens in a text. 1: none is repeated.",
  distinct_2: "the share of different pairs of tokens in a text. 1: none is repeated.",
  longest_repetition: "the number of tokens of the longest sequence that a text holds twice. 0: nothing is repeated.",
  accuracy: "the share of sentences in which the right answer is likelier than the wrong one. 0.5: chance.",
  preference: "surprisal of the wrong answer minus that of the right one. Above 0 nats: the right one is preferred.",
};

const sayMeaning = (metric) => (MEANINGS[metric] ? `${metricName(metric)}: ${MEANINGS[metric]}` : "");

/* Words that a reader may not know; those of steering only where there is some. */
const WORDS = [
  ["token", "A piece of text, a word or a part of one: what a model reads and predicts.", () => true],
  ["block, layer",
    "A model works in steps, called blocks. Layer 0 is its input (the embeddings, \u201cemb.\u201d); layer k is what block k \u2212 1 hands on. The last layer gives the model's actual prediction.", () => true],
  ["lens", "How a layer in between is read: as if it were the last one, through the model's own output, so that each layer gives a guess at the token to be predicted.", () => true],
  ["nats", "The unit of information here: 1 nat is 1.44 bits. ln V, the natural logarithm of the number of tokens, is the most there can be.", () => true],
  ["target", "The token whose probability is read: the next one of the text, or the one that was masked; where there is none, the one that is predicted.", () => true],
  ["steering, vector",
    "A vector is added to the model's inner state while it reads. It is meant to push the model in one direction, as towards a style.", () => steered().length],
  ["condition, strength",
    "One way of running the model: standard is the model as it is; the others are steered, by the vector times a strength.", () => steered().length],
  ["placebo", "A vector of the same size that points anywhere. If placebos do as much as the vector, its direction does not matter.", () => data.placebos.length],
  ["95 % interval",
    "Where the mean over all sentences of this kind is likely to lie. An interval without 0 speaks for a change.",
    () => steered().length],
  ["p (Holm)", "How often chance alone would give so large a mean difference; corrected for the number of layers and conditions tried. Below 0.05 is called sure here.", () => steered().length],
  ["effect size d",
    "The mean difference divided by how much it varies between sentences. 0.2 is small, 0.5 medium, 0.8 large.",
    () => steered().length],
  ["relative dose",
    "How long the added vector is beside the state it is added to. 0.1 is a light push, 1 as much as was there.",
    () => data.models.some((model) => Object.keys(model.strengths).length)],
];

function glossary(folder) {
  const rows = Object.keys(data.metrics).filter((name) => MEANINGS[name]);
  folder.append(h("dl", { class: "words" },
      WORDS.filter(([, , isUsed]) => isUsed()).map(([word, text]) => [h("dt", {}, word), h("dd", {}, text)])),
    h("h3", {}, "The metrics of this run"),
    scroller("The metrics of this run", tableOf(["metric", "unit", "what it says"],
      rows.map((name) => [metricName(name), about(name).unit || "none", capital(MEANINGS[name])]),
        { kind: "texts meanings", textColumns: 3 })));
  return () => {};
}
