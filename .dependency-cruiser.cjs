// Which folder of src may import which (docs/architecture: Direction). To allow an edge, add it here, and
// to the document. Whatever is not listed is forbidden, a folder that is not listed is forbidden too.
const LEAVES = ['bounded-cache', 'settings', 'trace-settings', 'errors', 'clock', 'extensions', 'tracing'];
const SHARED = ['scheduling', 'telemetry', 'database', 'http'];
const ROOT = ['main', 'app', 'app.module', 'hooks', 'extension-api'];

const MAY_IMPORT = {
  'bounded-cache': [],
  settings: ['trace-settings'],
  'trace-settings': [],
  errors: [],
  clock: [],
  extensions: [],
  'extension-loader': ['extensions'],
  'node-version': [],
  tracing: [],

  http: [...LEAVES, 'database'],
  database: LEAVES,
  scheduling: [...LEAVES, 'database', 'telemetry'],
  telemetry: [...LEAVES, 'http', 'database'],

  agents: [...SHARED, ...LEAVES, 'config', 'operators'],
  kinds: [...SHARED, ...LEAVES],
  queue: [...SHARED, ...LEAVES, 'kinds', 'concurrency'],
  leases: [...SHARED, ...LEAVES, 'kinds', 'concurrency', 'queue', 'agents'],
  tasks: [...SHARED, ...LEAVES, 'kinds', 'concurrency', 'queue', 'agents', 'leases', 'operators'],
  metrics: [...SHARED, ...LEAVES, 'agents', 'operators'],
  config: [...SHARED, ...LEAVES, 'operators'],
  concurrency: [...SHARED, ...LEAVES, 'operators'],
  operators: [...SHARED, ...LEAVES],

  // With main the entry point: what the root may import, it may too.
  cli: [
    'app',
    'extension-loader',
    ...['database', 'http', 'telemetry', ...LEAVES],
    ...['config', 'operators', 'agents', 'tasks'],
  ],

  access: ['http', 'database', 'scheduling', ...LEAVES, 'agents', 'operators'],
};

// 'agents' is a folder, 'clock' a file with perhaps a spec beside it.
const room = (names) => `^src/(?:${names.join('|').replaceAll('.', '\\.')})(?:/|\\.ts$|\\.spec\\.ts$)`;

const directions = Object.entries(MAY_IMPORT).map(([from, to]) => ({
  name: `direction-${from}`,
  comment: `src/${from} may import only ${to.join(', ') || 'nothing of ours'}.`,
  severity: 'error',
  from: { path: room([from]) },
  to: { path: '^src/', pathNot: room([from, ...to]) },
}));

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    ...directions,
    {
      name: 'unknown-folder',
      comment: 'A new folder or file at the top of src needs its line in MAY_IMPORT.',
      severity: 'error',
      from: { path: '^src/', pathNot: room([...Object.keys(MAY_IMPORT), ...ROOT]) },
      to: {},
    },
    {
      name: 'no-circular',
      comment: 'Turn the backward edge into a hook that the other side subscribes to.',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    {
      name: 'no-barrel',
      comment: 'Import the file that declares it.',
      severity: 'error',
      from: {},
      to: { path: '/index\\.ts$', pathNot: 'node_modules/' },
    },
    {
      name: 'src-stands-alone',
      comment: 'The program must not need its tests, tools or (loaded at run time) migrations to compile.',
      severity: 'error',
      from: { path: '^src/' },
      to: { path: '^(?:test|bench|scripts|examples|migrations|dist)/' },
    },
    {
      name: 'migrations-stand-alone',
      comment: 'A migration is history: it must not change when the program does.',
      severity: 'error',
      from: { path: '^migrations/' },
      to: { path: '^(?:src|test|bench|scripts|examples|dist)/' },
    },
    {
      name: 'extensions-by-the-front-door',
      comment: 'An extension imports dns-agent-control-plane/extension; export there what it lacks.',
      severity: 'error',
      from: { path: '^examples/' },
      to: { path: '^(?:src|migrations|test|bench|scripts|dist)/', pathNot: '^dist/extension-api\\.' },
    },
    {
      name: 'sqlite-behind-the-door',
      comment: 'Only src/database knows the driver; use its read and write.',
      severity: 'error',
      from: { path: '^(?:src|migrations)/', pathNot: '^src/database/' },
      to: { path: '(?:^|node_modules/)(?:@types/)?better-sqlite3(?:/|$)' },
    },
    {
      name: 'opentelemetry-only-when-on',
      comment:
        'What it loads takes time and memory: src/tracing.ts makes spans, and is free if traces are off.',
      severity: 'error',
      from: { path: '^(?:src|migrations)/', pathNot: '^src/telemetry/otlp\\.ts$' },
      to: { path: '(?:^|node_modules/)@opentelemetry/', dependencyTypesNot: ['type-only'] },
    },
    {
      name: 'unresolvable',
      comment: 'The import leads nowhere.',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
  ],
  options: {
    doNotFollow: { path: ['node_modules', '^dist/'] },
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['types', 'import', 'require', 'node', 'default'],
    },
  },
};
