// Asks llama.cpp (npm's @fugood/llama.node) about GGUF files: `node llama_cpp.cjs < WORK.json`.
//
// WORK is a list of {"model": FILE, ...}; a JSON list comes out, one object for each. With
//
//   "turns": MESSAGES   "chat" is what the file's chat template writes, "chat_ids" its tokens
//   "text": PROMPT      "ids" are its tokens, "answers" a list of one answer; of several prompts the ids
//                       are the first one's, and each has an answer
//   "mmproj": FILE, "images": [FILE, ...]   as "text", and "answers" has one for each image, which
//                       stands in the prompt as <__media__>
//   "tokens": N, "sampled": N   the lengths of an answer's two texts; 24 and 1 if they are not given, and
//                       no text is sampled where N is 0
//
// An answer is {"greedy": TOKENS, "text": the same as one string, "ended": whether it stopped at an
// end of turn, "steps": [{"token": TOKEN, "next": {TOKEN: PROBABILITY}}] of a text that was sampled,
// "next": that of the first step}.
const fs = require("fs");
const { open, GREEDY, NEUTRAL } = require("./llama_node.cjs");

async function answer(complete, asked, { tokens = 24, sampled = 1 }) {
  const greedy = await complete({ ...asked, ...GREEDY, n_predict: tokens });
  const other = sampled ? await complete({ ...asked, ...NEUTRAL, n_predict: sampled }) : { steps: [] };
  const steps = other.steps.map(({ content, probs }) => ({
    token: content, next: Object.fromEntries(probs.map((one) => [one.tok_str, one.prob])),
  }));
  return {
    greedy: greedy.steps.map((one) => one.content).filter(Boolean),
    text: greedy.text, ended: greedy.stopped_eos, steps, next: steps[0]?.next,
  };
}

async function ask(job) {
  const { text, turns, images } = job;
  const { context, complete } = await open(job);
  const found = {};
  if (turns) {
    found.chat = (await context.getFormattedChat(turns, undefined, { jinja: true })).prompt;
    found.chat_ids = Array.from((await context.tokenize(found.chat)).tokens);
  }
  if (text) {
    const shown = images ? images.map((image) => ({ media_paths: [image] })) : [{}];
    const prompts = [].concat(text);
    found.ids = images ? [] : Array.from((await context.tokenize(prompts[0])).tokens);
    found.answers = [];
    for (const prompt of prompts) {
      for (const one of shown) found.answers.push(await answer(complete, { prompt, ...one }, job));
    }
  }
  return found;
}

(async () => {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0))) answers.push(await ask(job));
  fs.writeFileSync(process.env.LLAMA_ANSWERS, JSON.stringify(answers));
})();
