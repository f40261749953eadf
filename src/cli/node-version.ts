// Imported before everything else: on an older Node the rest fails without saying why.
if (Number(process.versions.napi) < 10) {
  console.error(`This program needs Node 22.14 or newer; this is ${process.versions.node}.`);
  process.exit(1);
}
