// Asks llama.cpp (npm's @fugood/llama.node) about GGUF files: `node llama_cpp.cjs < WORK.json`.
//
// WORK is [{"model": FILE, "text": PROMPT, "turns": MESSAGES or none}]; a JSON list comes out, for
// each {"ids": the prompt's tokens, "next": {TOKEN: PROBABILITY}, "greedy": what it goes on to
// write, "chat": the turns as the file's chat template writes them}.
const fs = require("fs");
const path = require("path");
const { loadModel } = require(path.join(process.env.LLAMA_NODE, "@fugood/llama.node"));

const EXACT = {
  n_ctx: 256, n_threads: 1, n_parallel: 1, n_gpu_layers: 0, use_mmap: false,
  cache_type_k: "f32", cache_type_v: "f32", flash_attn_type: "off",
};
const NEUTRAL = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 1 };

async function ask({ model, text, turns }) {
  const context = await loadModel({ model, ...EXACT });
  const { tokens } = await context.tokenize(text);
  const sampled = await context.completion({ prompt: text, n_predict: 1, n_probs: 1000, ...NEUTRAL });
  const pairs = sampled.completion_probabilities[0].probs.map((one) => [one.tok_str, one.prob]);
  const greedy = await context.completion({ prompt: text, n_predict: 24, temperature: 0 });
  const chat = turns && (await context.getFormattedChat(turns, undefined, { jinja: true })).prompt;
  await context.release();
  return {
    chat,
    ids: Array.from(tokens), next: Object.fromEntries(pairs), greedy: greedy.text,
    ended: greedy.stopped_eos,
  };
}

(async () => {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0))) answers.push(await ask(job));
  fs.writeFileSync(process.env.LLAMA_ANSWERS, JSON.stringify(answers));
})();
