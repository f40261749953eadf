import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ForeignDatabase } from '../../src/database/database-error';
import { pendingMigrations } from '../../src/database/migrations';
import { inspectDatabase, openDatabase } from '../../src/database/open-database';
import { readSettings } from '../../src/settings';
import { databaseIn, removeDatabaseIn } from '../helpers/harness';

describe('tables of the names of ours, in a database that this program did not make', () => {
  let folder: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(() => removeDatabaseIn(folder));

  it.each([
    ['beside no migrations', []],
    [
      'beside migrations of another form',
      ['CREATE TABLE migrations (version integer)', 'INSERT INTO migrations VALUES (7)'],
    ],
    [
      'beside migrations of other names',
      ['CREATE TABLE migrations (name text)', "INSERT INTO migrations VALUES ('0001')"],
    ],
  ])('%s keep it from being used, in a sentence', async (_, statements) => {
    const settings = readSettings({
      CONTROL_PLANE_DATABASE_URL: await databaseIn(folder),
      CONTROL_PLANE_MIN_FREE_DISK_MB: '0',
    });
    const ours = await openDatabase(settings);
    await ours.write(async (tx) => {
      for (const statement of ['DROP TABLE migrations', ...statements]) await tx.run(statement);
    });
    await ours.close();
    for (const use of [
      () => openDatabase(settings),
      () => inspectDatabase(settings.database, ({ manager }) => pendingMigrations(manager.dataSource)),
    ]) {
      const error = await use().then(
        () => undefined,
        (thrown: Error) => thrown,
      );
      expect(error).toBeInstanceOf(ForeignDatabase);
      expect(error?.message).toMatch(
        /^[^\n]*(of another program|not a database of this program)[^\n]*agent[^\n]*$/,
      );
    }
  });
});
