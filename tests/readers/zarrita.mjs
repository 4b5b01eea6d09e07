// Reads a Zarr result with zarrita, as tests/readers/probes.py describes.
import * as readline from "node:readline/promises";
import * as zarr from "zarrita";

const [url, variable] = process.argv.slice(2);
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function nested({ data, shape }) {
  const [rows, columns] = shape;
  if (columns === undefined) return Array.from(data, Number);
  return Array.from({ length: rows }, (_, row) =>
    Array.from(data.slice(row * columns, (row + 1) * columns)),
  );
}

const say = (read) => console.log(JSON.stringify(read));

try {
  const root = zarr.root(new zarr.FetchStore(url));
  const group = await zarr.open.v3(root, { kind: "group" });
  const open = (name) => zarr.open.v3(group.resolve(name), { kind: "array" });
  const read = async (name) => nested(await zarr.get(await open(name)));
  const array = await open(variable);
  const [members, times] = array.shape;
  const names = array.dimensionNames.slice(2);
  const coordinates = {};
  for (const name of names) coordinates[name] = await read(name);
  const map = async (...index) => nested(await zarr.get(array, [...index, null, null]));
  say({ coordinates, hours: await read("time"), map: await map(0, 0) });
  await lines.next();
  say({ map: await map(members - 1, times - 1) });
} catch (error) {
  say({ error: String(error) });
}
process.stdin.destroy(); // ends the process when its output is written
