const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 24 || (major === 24 && minor < 9)) {
  // jest loads Nest's ESM packages from CommonJS code only from this version on.
  throw new Error(`The tests need Node 24.9 or newer, this is ${process.version}. "make test" fetches one.`);
}

// Types are checked by "npm run types"; tsconfig's isolatedModules makes ts-jest transpile only.
const transform = { '^.+\\.ts$': ['ts-jest', { tsconfig: '<rootDir>/tsconfig.json' }] };

/** What an end-to-end project is, on whichever database. */
const e2e = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.e2e-spec.ts'],
  transform,
  // Tests are typed against src and run against the build: only there is the swagger metadata complete.
  moduleNameMapper: { '^(?:\\.\\./)+src/(.*)$': '<rootDir>/dist/$1' },
};

/** What need not run on PostgreSQL too; everything else does. */
const SQLITE_ONLY = [
  // About the SQLite file: who writes it, what a killed process leaves of it, copies of it.
  'write-door',
  'crash',
  'backup',
  // About a client of the HTTP interface, which without a server opens a SQLite file itself.
  'cli',
  // About what stands before any statement: connections, headers, the log.
  'logs',
  'proxies',
  'slow-clients',
  'security-headers',
  // About files and functions alone.
  'deploy',
  'history-checker',
];

/** About several processes on one database, and about getting there. */
const POSTGRES_ONLY = ['replicas', 'shared-database', 'shared-quotas', 'transfer'];

const files = (names) => names.map((name) => `/test/${name}\\.e2e-spec\\.ts$`);

/** The same tests on PostgreSQL. */
const postgres = {
  ...e2e,
  displayName: 'e2e-postgres',
  testPathIgnorePatterns: files(SQLITE_ONLY),
  // Read by test/harness.ts. The server is an embedded one, or that of CONTROL_PLANE_TEST_POSTGRES_URL.
  globals: { testDatabase: 'postgres' },
  globalSetup: '<rootDir>/test/postgres-setup.mjs',
  globalTeardown: '<rootDir>/test/postgres-teardown.mjs',
};

/** @type {import('jest').Config} */
module.exports = {
  maxWorkers: 2,
  testTimeout: 30_000,
  projects: [
    {
      displayName: 'unit',
      testEnvironment: 'node',
      roots: ['<rootDir>/src'],
      testMatch: ['**/*.spec.ts'],
      transform,
    },
    { ...e2e, displayName: 'e2e', testPathIgnorePatterns: files(POSTGRES_ONLY) },
    postgres,
  ],
};
