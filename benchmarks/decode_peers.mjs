// Decodes with llama.cpp (npm's node-llama-cpp), for benchmarks/decode_peers.py:
// `node decode_peers.mjs PACKAGE FILE THREADS MOST_ROWS`.
//
// Reads lines {"rows": [[TOKEN, ...], ...], "tokens": N}; for each one writes a line with the seconds
// of wall and CPU time that N greedy tokens of every row took after the prompts, whatever the tokens.
import fs from "fs";
import readline from "readline";
import { pathToFileURL } from "url";

const [folder, modelPath, threads, most] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(`${folder}/dist/index.js`));
const llama = await getLlama({
  gpu: false, build: "never", maxThreads: Number(threads), logLevel: LlamaLogLevel.error,
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  sequences: Number(most), contextSize: 1024, threads: { ideal: Number(threads), min: Number(threads) },
});
const sequences = Array.from({ length: Number(most) }, () => context.getSequence());

async function decode(sequence, token, tokens) {
  let written = 0;
  for await (const _ of sequence.evaluate([token], { temperature: 0, yieldEogToken: true })) {
    if (++written === tokens) break;
  }
  return written;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { rows, tokens } = JSON.parse(line);
  const used = sequences.slice(0, rows.length);
  for (const [index, sequence] of used.entries()) {
    await sequence.clearHistory();
    await sequence.evaluateWithoutGeneratingNewTokens(rows[index].slice(0, -1));
  }
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  const written = await Promise.all(used.map((sequence, index) => decode(sequence, rows[index].at(-1), tokens)));
  const { user, system } = process.cpuUsage(cpu);
  const found = { wall: (performance.now() - wall) / 1e3, cpu: (user + system) / 1e6, written };
  fs.writeSync(1, `${JSON.stringify(found)}\n`);
}
process.exit(0); // the package leaves threads behind
