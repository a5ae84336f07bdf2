// A row of a comparison leads to its run, which must be open to be seen.
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
};

document.documentElement.classList.add('scripted');
const { runs } = JSON.parse(document.getElementById('data').textContent);
startTheme();
startTables();
startTimelines(runs);
startFlames(runs);
addEventListener('hashchange', openTarget);
openTarget();
