const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 24 || (major === 24 && minor < 9)) {
  // jest loads Nest's ESM packages from CommonJS code only from this version on.
  throw new Error(`The tests need Node 24.9 or newer, this is ${process.version}. "make test" fetches one.`);
}

// Types are checked by "npm run types"; tsconfig's isolatedModules makes ts-jest transpile only.
const transform = { '^.+\\.ts$': ['ts-jest', { tsconfig: '<rootDir>/tsconfig.json' }] };

/** A project of whole-application tests. Typed against src and run against the build: only there is the swagger metadata complete. */
const folder = (name) => ({
  testEnvironment: 'node',
  roots: [`<rootDir>/test/${name}`],
  testMatch: ['**/*.e2e-spec.ts'],
  transform,
  moduleNameMapper: { '^(?:\\.\\./)+src/(.*)$': '<rootDir>/dist/$1' },
});

/** On SQLite: each server gets a copy of a migrated file. */
const onSqlite = (project) => ({
  ...project,
  globalSetup: '<rootDir>/test/helpers/sqlite-setup.mjs',
  globalTeardown: '<rootDir>/test/helpers/sqlite-teardown.mjs',
});

/** The same on PostgreSQL: an embedded one, or the server of CONTROL_PLANE_TEST_POSTGRES_URL. */
const onPostgres = (project) => ({
  ...project,
  // Read by test/helpers/harness.ts.
  globals: { testDatabase: 'postgres' },
  globalSetup: '<rootDir>/test/helpers/postgres-setup.mjs',
  globalTeardown: '<rootDir>/test/helpers/postgres-teardown.mjs',
});

/** In test/slow: about the SQLite file, what a killed process leaves of it, copies of it; or about functions alone. */
const SQLITE_ONLY = [
  'crash',
  'backup',
  'dev',
  'disk-full',
  'history-checker',
  'log-faults',
  'memory',
  'politeness-simulation',
  'prometheus',
  'slow-clients',
  'stopping',
  'traces',
];
/** In test/slow: about several processes on one database, and about getting there. */
const POSTGRES_ONLY = [
  'mutants',
  'pacing',
  'postgres',
  'replicas',
  'load-balancer',
  'shared-database',
  'shared-quotas',
  'transfer',
];

const files = (names) => names.map((name) => `/test/slow/${name}\\.e2e-spec\\.ts$`);

/** @type {import('jest').Config} */
module.exports = {
  maxWorkers: 2,
  testTimeout: 30_000,
  projects: [
    {
      displayName: 'unit',
      testEnvironment: 'node',
      roots: ['<rootDir>/src', '<rootDir>/bench'],
      testMatch: ['**/*.spec.{ts,mjs}'],
      transform,
    },
    { ...onSqlite(folder('behaviour')), displayName: 'behaviour' },
    { ...onSqlite(folder('conformance')), displayName: 'conformance' },
    { ...onPostgres(folder('conformance')), displayName: 'conformance-postgres' },
    { ...onSqlite(folder('slow')), displayName: 'slow', testPathIgnorePatterns: files(POSTGRES_ONLY) },
    {
      ...onPostgres(folder('slow')),
      displayName: 'slow-postgres',
      testPathIgnorePatterns: files(SQLITE_ONLY),
    },
  ],
};
