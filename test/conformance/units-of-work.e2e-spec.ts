import type { Transaction } from '../../src/database/statements';
import { TestServer } from '../helpers/harness';

describe('a unit of work', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start();
    await server.database.write((tx) => tx.run('CREATE TABLE notes (note text NOT NULL)'));
  });
  afterAll(() => server.stop());

  const insert = (tx: Transaction, note: string) => tx.run('INSERT INTO notes VALUES ($1)', note);
  const notes = () =>
    server.database.read((statements) => statements.rows('SELECT note FROM notes ORDER BY note'));

  it('takes no statements once it is over, as its transaction then is of another unit, or there is none', async () => {
    const kept = await server.database.write(async (tx) => {
      await insert(tx, 'first');
      return tx;
    });
    await expect(insert(kept, 'late')).rejects.toThrow('the unit of work is over');
    await expect(kept.rows('SELECT 1')).rejects.toThrow('the unit of work is over');
    expect(await notes()).toEqual([{ note: 'first' }]);
  });

  it('that fails leaves nothing of what it did at the same time', async () => {
    const gate = Promise.withResolvers<void>();
    const branch = Promise.withResolvers<unknown>();
    const failing = server.database.write(async (tx) => {
      const late = async () => {
        await insert(tx, 'early');
        await gate.promise;
        await insert(tx, 'late');
      };
      const running = late();
      running.catch(branch.resolve);
      await Promise.all([running, tx.run('INSERT INTO notes VALUES (NULL)')]);
    });
    await expect(failing).rejects.toThrow();
    gate.resolve();
    expect(await branch.promise).toMatchObject({ message: expect.any(String) });
    await server.database.write((tx) => insert(tx, 'next'));
    expect(await notes()).toEqual([{ note: 'first' }, { note: 'next' }]);
  });
});
