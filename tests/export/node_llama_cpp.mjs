// Asks llama.cpp (npm's node-llama-cpp, whose build uses AVX2) about a GGUF file:
// `node node_llama_cpp.mjs < WORK.json > ANSWERS.json`.
//
// WORK is {"package": FOLDER of node-llama-cpp, "model": FILE, "prompts": [TEXT, ...], "tokens": N};
// a JSON list of N greedy tokens as text comes out for each prompt, fewer where the turn ends before.
import fs from "fs";
import { pathToFileURL } from "url";

const { package: folder, model: modelPath, prompts, tokens } = JSON.parse(fs.readFileSync(0));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(`${folder}/dist/index.js`));
const llama = await getLlama({ gpu: false, build: "never", maxThreads: 1, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  contextSize: 1024, threads: 1, flashAttention: false,
  experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();
const answers = [];
for (const prompt of prompts) {
  await sequence.clearHistory();
  const written = [];
  for await (const token of sequence.evaluate(model.tokenize(prompt, true), { temperature: 0 })) {
    written.push(token);
    if (written.length === tokens) break;
  }
  answers.push(model.detokenize(written));
}
fs.writeSync(1, JSON.stringify(answers));
process.exit(0); // the package leaves threads behind
