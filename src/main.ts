import { createApp } from './app';
import { Database } from './database/database';
import { DatabaseError } from './database/sqlite';
import { readSettings, type Settings, SettingsError } from './settings';

/** Exit codes: 0 stopped as asked, 1 failed, 2 wrong settings or arguments. */
const FAILED = 1;
const MISUSED = 2;

async function main(args: readonly string[]): Promise<void> {
  const unknown = args.find((arg) => arg !== '--migrate-only');
  if (unknown !== undefined) {
    console.error(`${unknown} is not an argument of this program; there is only --migrate-only.`);
    process.exitCode = MISUSED;
    return;
  }
  const settings = readSettings();
  if (args.includes('--migrate-only')) await migrateOnly(settings);
  else await serve(settings);
}

/** Applies the migrations and ends. */
async function migrateOnly(settings: Settings): Promise<void> {
  const database = await Database.open({ ...settings, migrateOnStart: true });
  console.log(
    database.applied.length === 0 ? 'The database is current.' : `Applied ${database.applied.join(', ')}.`,
  );
  await database.close();
}

/** Serves until SIGTERM or SIGINT, then stops in order, within the time that the settings give. */
async function serve(settings: Settings): Promise<void> {
  const { app, logger, stop } = await createApp(settings);
  let stopping = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (stopping) return;
    stopping = true;
    logger.info({ signal }, 'stopping');
    const overdue = setTimeout(() => {
      logger.fatal('did not stop in time; what was not answered was not promised');
      logger.flush(() => process.exit(FAILED));
    }, settings.shutdownTimeoutMs);
    stop().then(
      () => {
        clearTimeout(overdue);
        logger.info('stopped');
        logger.flush(() => process.exit(0));
      },
      (error: unknown) => {
        logger.fatal({ err: error }, 'failed to stop');
        logger.flush(() => process.exit(FAILED));
      },
    );
  };
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
  try {
    await app.listen({ host: settings.host, port: settings.port });
  } catch (error) {
    await stop();
    throw error;
  }
  logger.info({ url: await app.getUrl() }, 'listening');
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const expected = error instanceof SettingsError || error instanceof DatabaseError;
  console.error(expected ? (error as Error).message : error);
  process.exitCode = error instanceof SettingsError ? MISUSED : FAILED;
});
